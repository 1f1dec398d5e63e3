"""drivers/gpu/drm/drm_pagemap_util.c:drm_pagemap_acquire_owner, as of Linux 7.3.4: who can reach whose memory."""

from collections.abc import Callable
from typing import Any

from gpusvm.errors import ModelError


class Owner:
    """Be the owner of a group of peers: an opaque object to compare by identity."""

    __slots__ = ("members",)

    def __init__(self) -> None:
        self.members = 0


class Peer:
    """Be one pagemap or one VM in an owner list (struct drm_pagemap_peer). `private` is the driver's."""

    __slots__ = ("list", "owner", "private")

    def __init__(self, private: Any) -> None:
        self.private = private
        self.owner: Owner | None = None
        self.list: OwnerList | None = None  # the one that it joined, also when it has left


class OwnerList:
    """Keep a driver's peers grouped by owner (struct drm_pagemap_owner_list)."""

    __slots__ = ("peers",)

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    def acquire_owner(self, peer: Peer, has_interconnect: Callable[[Peer, Peer], bool]) -> Owner:
        """Put `peer` into the first group all of whose members it can reach, else into a new one.

        The result depends on who joined first and is never looked at again; the relation is taken as symmetric.
        """
        if peer.owner is not None:
            raise ModelError("acquire_owner: the peer has an owner already")
        place = len(self.peers)
        owner: Owner | None = None
        i = 0
        while i < len(self.peers):
            group = self.peers[i].owner
            end = i
            reaches_all = True
            while end < len(self.peers) and self.peers[end].owner is group:
                reaches_all = reaches_all and has_interconnect(peer, self.peers[end])
                end += 1
            if reaches_all:
                owner, place = group, end
                break
            i = end
        if owner is None:
            owner = Owner()
        owner.members += 1
        peer.owner = owner
        peer.list = self
        self.peers.insert(place, peer)
        return owner

    def release_owner(self, peer: Peer) -> None:
        """Take `peer` out of its group (drm_pagemap_release_owner); the last member takes the owner along. Nothing for
        a peer that never joined one; ModelError for one that has left, of which the kernel follows stale pointers.
        """
        if peer.list is None:
            return
        if peer.owner is None:
            raise ModelError("release_owner: the peer has no owner")
        peer.owner.members -= 1
        peer.owner = None
        self.peers.remove(peer)
