"""NetworkPolicies on local nodes: the firewall of kube-router, with the iptables and ipset that it calls."""

from pathlib import Path

from cluster import tools

# With their libraries: they are unpacked, not installed, for a kubelet or kube-proxy that finds iptables uses it.
PACKAGES = (
    *("iptables", "libip4tc2", "libip6tc2", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11"),
    *("libxtables12", "ipset", "libipset13"),
)
PROGRAMS = tuple(f"{name}{part}" for name in ("iptables", "ip6tables") for part in ("", "-save", "-restore"))


def prepare() -> Path:
    """The folder with kube-router and, below `usr`, what it calls. Raises ClusterError."""
    folder = tools.build("kube-router")
    if not (folder / "usr").exists():
        unpacked = folder / ".unpacked"
        links = "; ".join(f"ln -sf xtables-nft-multi usr/sbin/{program}" for program in PROGRAMS)
        tools.run_bash(
            f"rm -rf '{unpacked}'; mkdir '{unpacked}'; cd '{unpacked}'; "
            f"fetch() {{ apt-get -q download {' '.join(PACKAGES)}; }}; fetch || {{ apt-get update; fetch; }}; "
            f"for package in *.deb; do dpkg -x \"$package\" .; done; {links}; mv usr ..; rm -rf '{unpacked}'",
            folder,
        )
    return folder


def environment(folder: Path) -> dict[str, str]:
    """For kube-router: where the programs that it calls and their libraries are."""
    libraries = next((folder / "usr/lib").glob("*-linux-gnu"))
    return {
        "KUBE_ROUTER": str(folder / "kube-router"),
        "KUBE_ROUTER_PATH": str(folder / "usr/sbin"),
        "KUBE_ROUTER_LIBRARIES": str(libraries),
    }
