/*
 * Measure how long it takes to get from a device page to the allocation that holds it: by a pointer in the page, by a
 * balanced tree of allocations (nodes of 48 bytes, as struct interval_tree_node has), without and with a lock around
 * it, and by a radix tree with 64 slots a node (576 bytes, as struct xa_node has). page_lookup.py compiles and runs it.
 *
 * Lookups are of random pages of a device with 32 GiB of 4 KiB; page_lookup ROUNDS ORDER makes fewer, in a smaller
 * one. Whoever looks up has struct page at hand, and goes on with the allocation, so that both are loaded in every way:
 * what a way costs beyond the pointer is its own. A kernel does other things between two lookups: here that is nothing,
 * or a walk over 4 MiB or 64 MiB, which leaves no node in the caches of the core, or hardly any in a cache at all. One
 * CSV row for each: way, allocations, MiB walked, nodes that a lookup loads on average, median ns of a lookup less that
 * of the clock.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define HUGE (32ul << 20)
#define ROUNDS 20000
#define ROUNDS_WITH_WALK 300
#define LEVELS 4

struct node { struct node *child[2]; uint64_t parent, first, last, subtree_last; };
struct slots { uint64_t header[5]; void *slot[64]; uint64_t marks[3]; };
struct page { uint64_t flags, word[5]; void *data; uint64_t refs; };
struct allocation { uint64_t first, last; struct node node; char rest[176]; };

enum way { POINTER, TREE, LOCKED_TREE, RADIX, WAYS };
static const char *const names[WAYS] = { "pointer", "tree", "locked tree", "radix" };

static uint64_t seed = 88172645463325252ull;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Everything lies in huge pages, as a kernel's memory does: its walks of page tables are no part of a lookup. */
static void *zeroed(size_t size)
{
	static char *arena, *end;
	char *p;

	size = (size + 63) & ~63ul;
	if (size > (size_t)(end - arena)) {
		size_t length = (size + HUGE) & ~(HUGE - 1);

		arena = aligned_alloc(HUGE, length);
		if (!arena)
			exit(3);
		madvise(arena, length, MADV_HUGEPAGE);
		end = arena + length;
	}
	p = arena;
	arena += size;
	return memset(p, 0, size);
}

static struct node *balanced(struct allocation **a, long n)
{
	struct node *root;

	if (n <= 0)
		return NULL;
	root = &a[n / 2]->node;
	root->first = a[n / 2]->first;
	root->last = a[n / 2]->last;
	root->child[0] = balanced(a, n / 2);
	root->child[1] = balanced(a + n / 2 + 1, n - n / 2 - 1);
	return root;
}

/* Entries are as high up as alignment and length allow, so that a block of 2 MiB takes eight slots of one node. */
static void store(struct slots *root, uint64_t index, uint64_t count, void *entry)
{
	while (count) {
		struct slots *at = root;
		int shift = 0, above;

		while (shift < 6 * (LEVELS - 1) && !(index & ((64ul << shift) - 1)) && count >= 64ul << shift)
			shift += 6;
		for (above = 6 * (LEVELS - 1); above > shift; above -= 6) {
			void **slot = &at->slot[index >> above & 63];

			if (!*slot)
				*slot = zeroed(sizeof(*at));
			at = *slot;
		}
		at->slot[index >> shift & 63] = (void *)((uintptr_t)entry | 1);
		index += 1ul << shift;
		count -= 1ul << shift;
	}
}

static int lock;

static inline struct allocation *lookup(enum way way, struct page *page, uint64_t pfn, struct node *tree,
					struct slots *radix, uint64_t *loads)
{
	if (way == POINTER)
		return page->data;
	if (way == RADIX) {
		void *at = radix;
		int shift;

		for (shift = 6 * (LEVELS - 1); shift >= 0 && !((uintptr_t)at & 1); shift -= 6, ++*loads)
			at = ((struct slots *)at)->slot[pfn >> shift & 63];
		return (struct allocation *)((uintptr_t)at & ~1ul);
	}
	if (way == LOCKED_TREE)
		while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
			;
	for (++*loads; pfn < tree->first || pfn > tree->last; ++*loads)
		tree = tree->child[pfn > tree->last];
	if (way == LOCKED_TREE)
		__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
	return (struct allocation *)((char *)tree - __builtin_offsetof(struct allocation, node));
}

int main(int argc, char **argv)
{
	static const long counts[] = { 64, 1024, 16384, 131072 };
	static const size_t walks[] = { 0, 4ul << 20, 64ul << 20 };
	static double spent[ROUNDS], clock_ns[ROUNDS];
	long most = argc > 1 ? atol(argv[1]) : ROUNDS, few = argc > 1 ? 10 : ROUNDS_WITH_WALK;
	long nr_pages = 1l << (argc > 2 ? atoi(argv[2]) : 23);
	struct page *pages = zeroed(nr_pages * sizeof(*pages));
	char *walked = zeroed(walks[2]);
	volatile uint64_t sink = 0;
	unsigned int c;

	if (most < 1 || most > ROUNDS || nr_pages < counts[3] || nr_pages > 1l << 24)
		return 4;
	printf("way,allocations,walk_mib,loads,ns\n");
	for (c = 0; c < sizeof(counts) / sizeof(*counts); c++) {
		long n = counts[c], apart = nr_pages / n, each = apart > 512 ? 512 : apart, i, r;
		struct allocation **a = malloc(n * sizeof(*a));
		struct slots *radix = zeroed(sizeof(*radix));
		struct node *tree;
		int walk, way;

		if (!a)
			return 3;
		for (i = 0; i < n; i++)
			a[i] = zeroed(sizeof(**a));
		for (i = n - 1; i > 0; i--) { /* neighbours in memory are none in the tree */
			long j = next_random() % (i + 1);
			struct allocation *other = a[i];

			a[i] = a[j];
			a[j] = other;
		}
		for (i = 0; i < n; i++) {
			uint64_t pfn;

			a[i]->first = i * apart;
			a[i]->last = a[i]->first + each - 1;
			for (pfn = a[i]->first; pfn <= a[i]->last; pfn++)
				pages[pfn].data = a[i];
			store(radix, a[i]->first, each, a[i]);
		}
		tree = balanced(a, n);
		for (walk = 0; walk < 3; walk++)
			for (way = 0; way < WAYS; way++) {
				long rounds = walk ? few : most;
				uint64_t loads = 0;

				for (r = 0; r < rounds; r++) {
					long pick = next_random() % n;
					uint64_t pfn = pick * apart + next_random() % each;
					struct allocation *found;
					double begin;
					size_t at;

					for (at = 0; at < walks[walk]; at += 64)
						sink += walked[at];
					sink += pages[pfn].flags;
					begin = now_ns();
					found = lookup(way, &pages[pfn], pfn, tree, radix, &loads);
					sink += found->rest[64];
					spent[r] = now_ns() - begin;
					if (found != a[pick])
						return 2;
				}
				for (r = 0; r < rounds; r++) {
					clock_ns[r] = now_ns();
					clock_ns[r] = now_ns() - clock_ns[r];
				}
				qsort(spent, rounds, sizeof(double), by_value);
				qsort(clock_ns, rounds, sizeof(double), by_value);
				printf("%s,%ld,%zu,%.2f,%.1f\n", names[way], n, walks[walk] >> 20, (double)loads / rounds,
				       spent[rounds / 2] - clock_ns[rounds / 2]);
			}
	}
	return 0;
}
