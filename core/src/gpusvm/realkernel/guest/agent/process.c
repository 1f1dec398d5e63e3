// SPDX-License-Identifier: MIT
/* What a process does with its memory by itself, and what children of it do. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_SWAP (1ULL << 62)
#define PAGEMAP_EXCLUSIVE (1ULL << 56)

int first_words;
__thread unsigned char *scratch;

static __thread sigjmp_buf before_access;
static __thread volatile sig_atomic_t in_access;

static void on_signal(int number)
{
	if (in_access)
		siglongjmp(before_access, number);
	_exit(128 + number);
}

static void get_scratch(void)
{
	scratch = mmap(NULL, MOST_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (scratch == MAP_FAILED)
		die("memory for pages");
}

void thread_init(void)
{
	output_init_thread();
	get_scratch();
}

void process_init(void)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_NODEFER };

	get_scratch();
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

unsigned char *page_at(unsigned long slot, unsigned long page)
{
	return (unsigned char *)(BASE + (slot % SLOTS) * SLOT_SIZE + page * PAGE);
}

void fill(unsigned char *pages, unsigned long n, uint32_t first)
{
	unsigned long words = first_words ? 1 : PAGE / sizeof(uint32_t);

	for (unsigned long i = 0; i < n; i++) {
		uint32_t *word = (uint32_t *)(pages + i * PAGE);

		for (unsigned long k = 0; k < words; k++)
			word[k] = first + i;
	}
}

/* Page by page, in order.  Returns the signal that ended it, 0 if none did; the pages that are done are counted. */
static int read_pages(const unsigned char *pages, unsigned long n, volatile unsigned long *done)
{
	int number;

	*done = 0;
	number = sigsetjmp(before_access, 1);
	if (!number) {
		in_access = 1;
		while (*done < n) {
			memcpy(scratch + *done * PAGE, pages + *done * PAGE, PAGE);
			++*done;
		}
	}
	in_access = 0;
	return number;
}

static int write_pages(unsigned char *pages, unsigned long n, uint32_t first, volatile unsigned long *done)
{
	int number;

	*done = 0;
	number = sigsetjmp(before_access, 1);
	if (!number) {
		in_access = 1;
		while (*done < n) {
			fill(pages + *done * PAGE, 1, first + *done);
			++*done;
		}
	}
	in_access = 0;
	return number;
}

static void do_read(const unsigned long *a)
{
	volatile unsigned long done;
	int number = read_pages(page_at(a[0], a[1]), a[2], &done);

	put("%d %d %lu 0 ", number ? -2 : 0, number, done);
	put_pages(scratch, done);
}

static void do_write(const unsigned long *a)
{
	volatile unsigned long done;
	int number = write_pages(page_at(a[0], a[1]), a[2], a[3], &done);

	put("%d %d %lu 0", number ? -2 : 0, number, done);
}

static void do_residency(const unsigned long *a)
{
	unsigned long first = (unsigned long)page_at(a[0], a[1]) / PAGE;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	put("0 0 %lu 0 ", a[2]);
	for (unsigned long i = 0; i < a[2]; i++) {
		uint64_t entry = 0;
		int exclusive;

		if (pread(fd, &entry, sizeof(entry), (first + i) * sizeof(entry)) != sizeof(entry))
			entry = 0;
		exclusive = !!(entry & PAGEMAP_EXCLUSIVE);
		if (entry & PAGEMAP_PRESENT)
			put("%c", exclusive ? 'X' : 'P');
		else if (entry & PAGEMAP_SWAP)
			put("%c", exclusive ? 's' : 'S');
		else
			put("n");
	}
	close(fd);
}

/* ---- children */

/* A child does one thing and ends.  One that a signal stopped says how far it came, and shows no pages. */
static void in_child(void (*act)(const unsigned long *), const unsigned long *a)
{
	size_t before, after;
	const char *text;
	int status;
	pid_t child;

	text = output_text(&before);
	child = fork();
	if (!child) {
		act(a);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status) {
		put("-3 %d 0 0", child < 0 ? errno : status);
		return;
	}
	text = output_text(&after);
	if (text[before] == '-') {
		int number;
		unsigned long done;
		char line[64];

		snprintf(line, sizeof(line), "%.*s", (int)(after - before < 63 ? after - before : 63), text + before);
		if (sscanf(line, "-2 %d %lu", &number, &done) == 2) {
			output_cut(before);
			put("-2 %d %lu 0", number, done);
		}
	}
}

/* The child that stays: it does what it is told through a pipe, writes its answer where all do, and says it is done. */
static struct {
	pid_t pid;
	int ask, told;
} child;

struct request {
	char what;
	unsigned long a[ARGUMENTS];
};

static void serve(int from, int to)
{
	struct request request;

	while (read(from, &request, sizeof(request)) == sizeof(request)) {
		if (request.what == 'r')
			do_read(request.a);
		else if (request.what == 'w')
			do_write(request.a);
		else
			do_residency(request.a);
		if (write(to, "", 1) != 1)
			break;
	}
	_exit(0);
}

void process_end(void)
{
	if (!child.pid)
		return;
	close(child.ask);
	waitpid(child.pid, NULL, 0);
	close(child.told);
	child.pid = 0;
}

static void do_fork(void)
{
	int ask[2], told[2];

	process_end();
	if (pipe(ask) || pipe(told))
		die("pipe");
	child.pid = fork();
	if (!child.pid) {
		close(ask[1]);
		close(told[0]);
		serve(ask[0], told[1]);
	}
	close(ask[0]);
	close(told[1]);
	child.ask = ask[1];
	child.told = told[0];
	put("%d 0 0 0", child.pid < 0 ? -1 : 0);
}

static void tell_child(char what, const unsigned long *a)
{
	struct request request = { .what = what };
	char done;

	if (!child.pid) {
		put("-9 0 0 0 nochild");
		return;
	}
	memcpy(request.a, a, sizeof(request.a));
	if (write(child.ask, &request, sizeof(request)) != sizeof(request) || read(child.told, &done, 1) != 1)
		put("-3 0 0 0");
}

int process_operation(const char *name, const unsigned long *a)
{
#define IS(other) (!strcmp(name, other))
	if (IS("mmap")) {
		int flags = MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE | (a[4] ? MAP_SHARED : MAP_PRIVATE);
		void *found = mmap(page_at(a[0], a[1]), a[2] * PAGE, a[3], flags, -1, 0);

		put_result(found == MAP_FAILED ? -1 : 0, 0, 0);
	} else if (IS("munmap")) {
		put_result(munmap(page_at(a[0], a[1]), a[2] * PAGE), 0, 0);
	} else if (IS("mprot")) {
		put_result(mprotect(page_at(a[0], a[1]), a[2] * PAGE, a[3]), 0, 0);
	} else if (IS("madv")) {
		put_result(madvise(page_at(a[0], a[1]), a[2] * PAGE, a[3]), 0, 0);
	} else if (IS("mremap")) {
		size_t size = a[2] * PAGE;
		void *found = mremap(page_at(a[0], a[1]), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(a[3], a[4]));

		put_result(found == MAP_FAILED ? -1 : 0, 0, 0);
	} else if (IS("r")) {
		do_read(a);
	} else if (IS("w")) {
		do_write(a);
	} else if (IS("pm")) {
		do_residency(a);
	} else if (IS("fr")) {
		in_child(do_read, a);
	} else if (IS("fw")) {
		in_child(do_write, a);
	} else if (IS("kf")) {
		do_fork();
	} else if (IS("ke")) {
		process_end();
		put("0 0 0 0");
	} else if (IS("kr")) {
		tell_child('r', a);
	} else if (IS("kw")) {
		tell_child('w', a);
	} else if (IS("kp")) {
		tell_child('p', a);
	} else {
		return 0;
	}
	return 1;
#undef IS
}
