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
    "a_block_shared_by_fork_gets_small_destinations": (
        {"pmd_order": 2, "thp": "always", "window": 32, "quirks": "fixed"},
        [
            ["mmap", {"p": 2, "page": 29, "n": 16, "prot": 3}],
            ["fork", {"p": 0}],
            ["touch", {"p": 3, "page": 36, "n": 4, "write": 1}],
            ["exit", {"p": 2}],
            ["fork", {"p": 1}],
            ["to_device", {"p": 3, "dev": 3, "page": 36, "n": 12}],
        ],
    ),
    "a_coherent_page_goes_home_to_be_pinned": (
        {"pmd_order": 2, "thp": "always", "window": 4, "quirks": "fixed"},
        [
            ["to_device", {"p": 2, "dev": 3, "page": 45, "n": 2}],
            ["pin", {"p": 2, "page": 46}],
        ],
    ),
    "a_split_in_three_processes_is_counted": (
        {"pmd_order": 2, "thp": "always", "window": 4, "quirks": "fixed"},
        [
            ["touch", {"p": 1, "page": 6, "n": 1, "write": 1}],
            ["fork", {"p": 3}],
            ["fork", {"p": 0}],
            ["to_device", {"p": 1, "dev": 3, "page": 0, "n": 5}],
        ],
    ),
    "a_childs_own_file_keeps_a_page_that_went_home": (
        {"pmd_order": 2, "thp": "never", "window": 4, "quirks": "fixed"},
        [
            ["to_device", {"p": 0, "dev": 1, "page": 7, "n": 2}],
            ["fork", {"p": 1}],
            ["fork", {"p": 2}],
            ["device", {"p": 2, "dev": 1, "page": 0, "n": 12, "write": 0}],
            ["mmap_shared", {"p": 0, "page": 16, "n": 24, "prot": 0}],
            ["mmap", {"p": 2, "page": 40, "n": 8, "prot": 3}],
            ["touch", {"p": 2, "page": 4, "n": 12, "write": 0}],
        ],
    ),
}
