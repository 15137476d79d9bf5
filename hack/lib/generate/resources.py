"""The custom resources whose definitions are generated."""

from generate.crd import CustomResource

RESOURCES: tuple[CustomResource, ...] = ()
