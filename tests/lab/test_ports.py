import socket
import subprocess
import sys

from lab import ports

CHOOSE_MANY = "from lab.ports import free_port; print(*[free_port() for _ in range(20)], flush=True); input()"


def test_several_processes_never_get_the_same_port():
    choosers = [
        subprocess.Popen(
            [sys.executable, "-c", CHOOSE_MANY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    chosen = [port for chooser in choosers for port in chooser.stdout.readline().split()]
    for chooser in choosers:
        chooser.communicate("\n")
    assert len(set(chosen)) == 40


def test_a_reserved_port_can_be_listened_on_and_is_outside_the_kernels_own_range():
    port = ports.free_port()
    try:
        assert port < ports._first_ephemeral_port()
        with socket.create_server((ports.LOCALHOST, port)):
            assert ports.is_listening(port)
        assert not ports.is_listening(port)
    finally:
        ports.give_back(port)


def test_a_port_given_back_can_be_reserved_again():
    port = ports.free_port()
    assert not ports._reserve(port)
    ports.give_back(port)
    assert ports._reserve(port)
    ports.give_back(port)
