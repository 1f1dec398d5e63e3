// SPDX-License-Identifier: MIT
/* The ioctls of lib/test_hmm, and the callbacks of its interval notifiers, which probes write into the trace. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent.h"
#include "test_hmm_uapi.h"

#define DEVICES 4	/* 2 and 3 exist where the system has memory for coherent ones */

static int device[DEVICES] = { -1, -1, -1, -1 };
static int trace = -1;
static unsigned long first_device, size_of_device;	/* of the driver's array, from the boot */

static void open_devices(void)
{
	for (int i = 0; i < DEVICES; i++) {
		char name[32];

		snprintf(name, sizeof(name), "/dev/hmm_dmirror%d", i);
		device[i] = open(name, O_RDWR | O_CLOEXEC);
	}
}

static void close_devices(void)
{
	for (int i = 0; i < DEVICES; i++) {
		if (device[i] >= 0)
			close(device[i]);
		device[i] = -1;
	}
}

static long ask(unsigned long number, unsigned long request, void *at, unsigned long n, struct hmm_dmirror_cmd *command)
{
	long ret;

	do {
		memset(command, 0, sizeof(*command));
		command->addr = (uintptr_t)at;
		command->ptr = (uintptr_t)scratch;
		command->npages = n;
		ret = ioctl(device[number % DEVICES], request, command);
	} while (ret < 0 && errno == EINTR);
	return ret;
}

static int operation(const char *name, const unsigned long *a)
{
	static const struct {
		const char *name;
		unsigned long request;
		enum { NOTHING, PAGES, BYTES } shows;
	} range_operations[] = {
		{ "dr", HMM_DMIRROR_READ, PAGES },
		{ "dru", HMM_DMIRROR_READ_UNLOCKED, PAGES },
		{ "dw", HMM_DMIRROR_WRITE, NOTHING },
		{ "mtd", HMM_DMIRROR_MIGRATE_TO_DEV, PAGES },
		{ "mts", HMM_DMIRROR_MIGRATE_TO_SYS, NOTHING },
		{ "snap", HMM_DMIRROR_SNAPSHOT, BYTES },
		{ "ex", HMM_DMIRROR_EXCLUSIVE, PAGES },
		{ "cex", HMM_DMIRROR_CHECK_EXCLUSIVE, NOTHING },
	};
	struct hmm_dmirror_cmd command;

	for (size_t i = 0; i < sizeof(range_operations) / sizeof(*range_operations); i++) {
		long ret;

		if (strcmp(name, range_operations[i].name))
			continue;
		if (!strcmp(name, "dw"))
			fill(scratch, a[3], a[4]);
		ret = ask(a[0], range_operations[i].request, page_at(a[1], a[2]), a[3], &command);
		put_result(ret, ret ? 0 : command.cpages, ret ? 0 : command.faults);
		if (ret || range_operations[i].shows == NOTHING)
			return 1;
		put(" ");
		if (range_operations[i].shows == PAGES)
			put_pages(scratch, a[3]);
		for (unsigned long k = 0; range_operations[i].shows == BYTES && k < a[3]; k++)
			put("%02x", scratch[k]);
		return 1;
	}
	if (!strcmp(name, "warn")) {
		put_kernel_warnings();
		return 1;
	}
	if (!strcmp(name, "fl")) {
		put_result(ask(a[0], HMM_DMIRROR_FLAGS, (void *)BASE, a[1], &command), 0, 0);
		return 1;
	}
	if (!strcmp(name, "rel")) {
		put_result(ask(a[0], HMM_DMIRROR_RELEASE, (void *)BASE, 1, &command), 0, 0);
		return 1;
	}
	return 0;
}

static void open_trace(void)
{
	trace = open("/sys/kernel/tracing/trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (trace < 0)
		die("trace_pipe");
	first_device = strtoul(setting("GPUSVM_DEVICES_AT", "0"), NULL, 16);
	size_of_device = strtoul(setting("GPUSVM_DEVICE_SIZE", "1"), NULL, 10);
}

/* Whole lines of the trace, one after the other; NULL when it is empty. */
static char *next_line(void)
{
	static char text[1 << 16];
	static size_t begin, end;

	for (;;) {
		char *newline = memchr(text + begin, '\n', end - begin);
		ssize_t got;

		if (newline) {
			char *line = text + begin;

			*newline = 0;
			begin = newline + 1 - text;
			return line;
		}
		memmove(text, text + begin, end - begin);
		end -= begin;
		begin = 0;
		got = read(trace, text + end, sizeof(text) - end);
		if (got <= 0)
			return NULL;
		end += got;
	}
}

static void forget_events(void)
{
	if (trace < 0)
		open_trace();
	while (next_line())
		;
}

static void put_events(void)
{
	char *line;

	while ((line = next_line())) {
		unsigned long start, end, of, owner;
		char *fields = strstr(line, "start=");
		int event;

		if (!fields || sscanf(fields, "start=%lx end=%lx event=%d device=%lx owner=%lx", &start, &end, &event, &of, &owner) != 5)
			continue;
		if (end <= BASE || start >= BASE + SLOTS * SLOT_SIZE)
			continue;
		put(" inv(%lu,%lx,%lx,%d,%s)", (of - first_device) / size_of_device, start > BASE ? (start - BASE) / PAGE : 0,
		    (end - BASE) / PAGE, event, owner && owner == of ? "own" : "-");
	}
}

const struct target dmirror = {
	.name = "dmirror",
	.open = open_devices,
	.close = close_devices,
	.operation = operation,
	.forget_events = forget_events,
	.put_events = put_events,
};
