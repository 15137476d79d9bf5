"""NVLink logical partitions and InfiniBand P_Keys."""
