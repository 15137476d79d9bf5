"""The verbs for NVIDIA hardware."""

import argparse

from simulator.build import build
from simulator.faults import inject, reboot, reset
from simulator.install import install, parse_arguments
from simulator.models import model_names, read_model
from simulator.show import show


def run_install(arguments: list[str]) -> int:
    print(install(parse_arguments(arguments)))
    return 0


def run_build(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="simulator build", description="Prints the folder of the artefacts.").parse_args(
        arguments
    )
    print(build())
    return 0


def run_profiles(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="simulator profiles").parse_args(arguments)
    for name in model_names():
        model = read_model(name)
        profiles = " ".join(row[0] for row in model["mig"]["profiles"])
        print(f"{name:<14} {model['gpus']} x {model['name']}: {profiles}")
    print("none           no NVIDIA hardware\n\nNode profiles: <model>[xN][:clique=C][:cluster=UUID], joined by +")
    return 0


VERBS = {
    "build": ("compile the simulated NVIDIA driver into the cache", run_build),
    "inject": ("make hardware misbehave: xid, lost, in-use, fabric, fail, slow", inject),
    "install": ("put simulated NVIDIA hardware below a driver root", run_install),
    "profiles": ("list the GPU models", run_profiles),
    "reboot": ("what a reboot of the node does to its GPUs", reboot),
    "reset": ("reset GPUs; without --gpu all faults end", reset),
    "show": ("print GPUs and instances of a simulated node", show),
}
