"""A network of a test's own: addresses and routes that come and go, a name server, and servers that see nothing else.

A network namespace of Linux, so it takes root, and `ip` of iproute2. What is made `inside` stays there, whoever uses it."""

import contextlib
import ctypes
import os
import subprocess

from .names import NameServer

LIBC = ctypes.CDLL(None, use_errno=True)
# A neighbour that has been asked for its address already, and drops what it gets: nothing has this address.
NOBODY = "02:00:00:00:00:01"
# What becomes of packets to an address that was lost: the route that says so.
LOSSES = {"no route": None, "unreachable": "unreachable {}", "prohibited": "prohibit {}", "black hole": "{} dev hole"}


class Network:
    """`with Network(run, name) as network:` has loopback, and on it the name server `network.names`."""

    def __init__(self, run, name):
        self.name = f"{run.where.name}.{name}"
        self.resolver = run.where / f"{self.name}.resolv.conf"
        self.resolver.write_text("nameserver 127.0.0.1\n")

    @staticmethod
    def possible():
        """Whether this machine lets us make one."""
        probe = ["unshare", "--net", "--mount", "ip", "link", "add", "hole", "type", "veth", "peer", "name", "bottom"]
        try:
            return os.geteuid() == 0 and subprocess.run(probe, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    def __enter__(self):
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        # What is routed into `hole` comes out at its other end, where it is for nobody.
        for command in ("link set lo up", "link add hole type veth peer name bottom", "link set hole up", "link set bottom up",
                        "addr add 10.255.0.1/32 dev hole"):
            self.ip(command)
        with self.inside():
            self.names = NameServer()
        return self

    def __exit__(self, *_):
        self.names.close()
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def ip(self, command):
        subprocess.run(["ip", "-n", self.name, *command.split()], check=True)

    @property
    def within(self):
        """What a server's command line begins with, to have it in this network with its name server."""
        use_resolver = f'mount --bind {self.resolver} /etc/resolv.conf && exec "$@"'
        return ["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--mount", "sh", "-c", use_resolver, "sh"]

    @contextlib.contextmanager
    def inside(self):
        """This thread is in the network, and so is every socket and process that it makes."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            _enter(there)
            try:
                yield
            finally:
                _enter(home)

    # An address and the way to it

    def add(self, address):
        """From now on the address is one of this network's."""
        self.ip(f"addr add {address}/32 dev lo scope global")

    def lose(self, address, how):
        """From now on it is not; `how` is one of LOSSES."""
        self.ip(f"addr del {address}/32 dev lo")
        if route := LOSSES[how]:
            self.ip(f"route add {route.format(address)}")
        if how == "black hole":
            self.ip(f"neigh replace {address} lladdr {NOBODY} dev hole")

    def find(self, address, how):
        """The way is back."""
        if route := LOSSES[how]:
            self.ip(f"route del {route.format(address)}")
        self.add(address)


def _enter(namespace):
    if LIBC.setns(namespace.fileno(), 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
