"""What random walks have found, made short: setting and steps by name. Each was a defect, and must stay mended."""

FOUND = {
    "a_block_with_pages_of_two_devices_is_checked": (
        {"pmd_order": 3, "thp": "always", "window": 32, "quirks": "fixed"},
        [
            ["mmap", {"p": 0, "page": 38, "n": 10, "prot": 3}],
            ["to_device", {"p": 0, "dev": 2, "page": 47, "n": 2}],
            ["to_device", {"p": 0, "dev": 1, "page": 41, "n": 9}],
        ],
    ),
}
