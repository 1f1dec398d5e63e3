// SPDX-License-Identifier: MIT
/* The ioctls of svmdev, our module on drm_gpusvm and drm_pagemap, which keeps a log of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include "agent.h"
#include "svmdev_uapi.h"

#define DEVICES 2

static int device[DEVICES] = { -1, -1 };
static int kernel_log = -1;
static char events[SVMDEV_LOG];
static __thread char text[SVMDEV_TEXT];	/* two threads may ask at once */

static void open_devices(void)
{
	for (int i = 0; i < DEVICES; i++) {
		char name[32];

		snprintf(name, sizeof(name), "/dev/svmdev%d", i);
		device[i] = open(name, O_RDWR | O_CLOEXEC);
		if (device[i] < 0)
			die(name);
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

static struct svmdev_command ask(unsigned long number, unsigned long request, struct svmdev_command command)
{
	command.text = (uintptr_t)text;
	text[0] = 0;
	if (ioctl(device[number % DEVICES], request, &command) < 0)
		command.ret = -errno;
	return command;
}

static void put_answer(const struct svmdev_command *command)
{
	put("%d %d %llu 0%s", command->ret ? -1 : 0, command->ret < 0 ? (int)-command->ret : 0,
	    (unsigned long long)command->done, text);
}

/* What the kernel has warned of since the sequence began: the first words of each line, spaces as _ */
static void put_warnings(int show)
{
	char line[8192];
	ssize_t got;

	if (show)
		put("0 0 0 0");
	while ((got = read(kernel_log, line, sizeof(line) - 1)) > 0 || (got < 0 && errno == EPIPE)) {
		static const char *const words[] = { "WARNING", "BUG", "Oops" };
		char *found = NULL;

		if (got < 0)
			continue;	/* it was overwritten meanwhile */
		line[got] = 0;
		for (int i = 0; !found && i < 3; i++)
			found = strstr(line, words[i]);
		if (!found || !show)
			continue;
		put(" ");
		for (int i = 0; i < 100 && found[i] && found[i] != '\n' && found[i] != '+'; i++)
			put("%c", found[i] == ' ' ? '_' : found[i]);
	}
}

/* The file of a device's shrinker of pagemaps, which has a number behind its name. */
static int open_shrinker(unsigned long number, const char *file, int how)
{
	char pattern[128];
	glob_t found;
	int fd = -1;

	/* debugfs may be there already */
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	errno = ENOENT;
	snprintf(pattern, sizeof(pattern), "/sys/kernel/debug/shrinker/drm-drm_pagemap:svmdev%lu-*/%s", number, file);
	if (!glob(pattern, 0, NULL, &found)) {
		fd = open(found.gl_pathv[0], how | O_CLOEXEC);
		globfree(&found);
	}
	return fd;
}

/* How many pagemaps could go; there is no line where there is none. */
static unsigned long shrinkable(unsigned long number)
{
	unsigned long group, count = 0;
	char line[128] = "";
	int fd = open_shrinker(number, "count", O_RDONLY);

	if (fd < 0)
		return 0;
	if (read(fd, line, sizeof(line) - 1) > 0 && sscanf(line, "%lu %lu", &group, &count) != 2)
		count = 0;
	close(fd);
	return count;
}

static void shrink(unsigned long number, unsigned long n)
{
	unsigned long before = shrinkable(number);
	int fd = open_shrinker(number, "scan", O_WRONLY);

	if (fd < 0) {
		put_result(-1, 0, 0);
		return;
	}
	if (dprintf(fd, "0 0 %lu", n) < 0)
		die("scan");
	close(fd);
	put_result(0, before - shrinkable(number), 0);
}

static int operation(const char *name, const unsigned long *a)
{
	static const struct {
		const char *name;
		unsigned long request;
	} plain[] = {
		/* dev slot page ... */
		{ "sf", SVMDEV_FAULT }, { "sp", SVMDEV_POPULATE }, { "se", SVMDEV_EVICT }, { "sv", SVMDEV_REVICT },
		{ "sd", SVMDEV_DROP }, { "sc", SVMDEV_SCAN }, { "si", SVMDEV_WHERE },
	};
	struct svmdev_command command = { 0 };

	for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++) {
		if (strcmp(name, plain[i].name))
			continue;
		command.addr = (uintptr_t)page_at(a[1], a[2]);
		command.n = a[3];
		command.flags = a[3];
		command.target = a[4];
		command = ask(a[0], plain[i].request, command);
		put_answer(&command);
		return 1;
	}
	if (!strcmp(name, "sr") || !strcmp(name, "sw")) {
		int writes = name[1] == 'w';

		if (writes)
			fill(scratch, a[3], a[4]);
		command.addr = (uintptr_t)page_at(a[1], a[2]);
		command.n = a[3];
		command.data = (uintptr_t)scratch;
		command = ask(a[0], writes ? SVMDEV_WRITE : SVMDEV_READ, command);
		put_answer(&command);
		if (!writes) {
			put(" ");
			put_pages(scratch, command.done);
		}
	} else if (!strcmp(name, "sb")) {
		command.n = a[1];
		command = ask(a[0], SVMDEV_EVICT_NTH, command);
		put_answer(&command);
	} else if (!strcmp(name, "sg")) {
		command = ask(a[0], SVMDEV_COLLECT, command);
		put_answer(&command);
	} else if (!strcmp(name, "st")) {
		command = ask(a[0], SVMDEV_STATE, command);
		put_answer(&command);
	} else if (!strcmp(name, "su")) {
		command = ask(a[0], SVMDEV_UNPLUG, command);
		put_answer(&command);
	} else if (!strcmp(name, "sl")) {
		command.n = a[1];
		command = ask(a[0], SVMDEV_TIMESLICE, command);
		put_answer(&command);
	} else if (!strcmp(name, "sa") || !strcmp(name, "sz")) {
		command = ask(a[0], name[1] == 'a' ? SVMDEV_HOLD : SVMDEV_RELEASE, command);
		put_answer(&command);
	} else if (!strcmp(name, "sk")) {
		shrink(a[0], a[1]);
	} else if (!strcmp(name, "sx")) {
		command.target = a[1];
		command.n = a[2];
		command = ask(a[0], SVMDEV_FAIL, command);
		put_answer(&command);
	} else if (!strcmp(name, "warn")) {
		put_warnings(1);
	} else {
		return 0;
	}
	return 1;
}

static unsigned long drain(int number)
{
	struct svmdev_command command = { .data = (uintptr_t)events };

	return ask(number, SVMDEV_EVENTS, command).done;
}

static void forget_events(void)
{
	if (kernel_log < 0) {
		kernel_log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (kernel_log < 0)
			die("/dev/kmsg");
		put_warnings(0);
	}
	for (int i = 0; i < DEVICES; i++)
		drain(i);
}

static void put_events(void)
{
	for (int i = 0; i < DEVICES; i++)
		put_bytes(events, drain(i));
}

const struct target svmdev = {
	.name = "svmdev",
	.open = open_devices,
	.close = close_devices,
	.operation = operation,
	.forget_events = forget_events,
	.put_events = put_events,
};
