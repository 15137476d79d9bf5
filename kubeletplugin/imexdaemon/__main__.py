"""`python -m kubeletplugin.imexdaemon`."""

import sys


def main() -> None:
    # asyncio does without. OpenSSL would be a sixth of this program's start and 2 MiB of it, on every node of a domain.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from kubeletplugin.imexdaemon.program import start

    start()


if __name__ == "__main__":
    main()
