// SPDX-License-Identifier: MIT
/*
 * Frames, both ways: length (32 bits, little-endian), kind (a byte), text.  From the host: S, a sequence for a process of
 * its own, that opens the devices first; Q, the end.  To the host: H, what the guest is, once; then A for each S, a line
 * of answer for each line of operation, and a last line "STATUS n" where the process did not end well.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define LONGEST_FRAME (4UL << 20)
#define HANGS_S 10	/* an operation takes milliseconds, and some wait a second for something, some times */

static int port = -1;

static void receive(void *to, size_t n)
{
	for (char *at = to; n; ) {
		ssize_t got = read(port, at, n);

		if (got > 0) {
			at += got;
			n -= got;
		} else if (!got || errno == EAGAIN) {
			/* nobody at the other end yet */
			struct pollfd until = { .fd = port, .events = POLLIN };

			poll(&until, 1, 50);
		} else if (errno != EINTR) {
			die("read");
		}
	}
}

static void transmit(const void *from, size_t n)
{
	for (const char *at = from; n; ) {
		ssize_t put = write(port, at, n);

		if (put > 0) {
			at += put;
			n -= put;
		} else if (errno != EINTR && errno != EAGAIN) {
			die("write");
		}
	}
}

static void answer(char kind)
{
	size_t length;
	const char *text = output_text(&length);
	uint32_t head = length;

	transmit(&head, sizeof(head));
	transmit(&kind, 1);
	transmit(text, length);
}

void do_operation(const struct target *target, const char *line)
{
	unsigned long a[ARGUMENTS] = { 0 };
	char name[16] = "";

	sscanf(line, "%15s %lu %lu %lu %lu %lu %lu %lu %lu", name, a, a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7);
	if (!process_operation(name, a) && !file_operation(name, a) && !target->operation(name, a))
		put("-9 0 0 0 unknown");
}

static void do_line(const struct target *target, char *line)
{
	target->forget_events();
	if (!strncmp(line, "race ", 5)) {
		/* no events: two that are written at once may be written into each other */
		do_race(target, line + 5);
	} else {
		do_operation(target, line);
		target->put_events();
	}
	put("\n");
}

/* The end of the process that does a sequence; 0 if it does not come, as an operation does not return. */
static int wait_for(pid_t worker, int *status)
{
	size_t before = 0, now;

	for (int waited = 0; waited < HANGS_S;) {
		struct timespec second = { .tv_sec = 1 };
		sigset_t ends;
		pid_t ended = waitpid(worker, status, WNOHANG);

		if (ended == worker)
			return 1;
		if (ended < 0)
			die("worker");
		sigemptyset(&ends);
		sigaddset(&ends, SIGCHLD);
		if (sigtimedwait(&ends, NULL, &second) >= 0)
			continue;
		output_text(&now);
		waited = now == before ? waited + 1 : 0;
		before = now;
	}
	return 0;
}

/* The line of an operation that does not return, whatever is there of it. */
static void put_hang(void)
{
	size_t length;
	const char *text = output_text(&length);

	while (length && text[length - 1] != '\n')
		length--;
	output_cut(length);
	put("HANG\n");
}

static void do_sequence(const struct target *target, char *text)
{
	pid_t worker = fork();
	int status = 0;

	if (!worker) {
		forget_warnings();
		first_words = !strncmp(text, "race ", 5) || strstr(text, "\nrace ");
		target->open();
		for (char *line; (line = strsep(&text, "\n")); )
			if (*line)
				do_line(target, line);
		process_end();
		_exit(0);
	}
	if (worker < 0)
		die("worker");
	if (!wait_for(worker, &status))
		put_hang();
	else if (status)
		put("STATUS %d\n", status);
}

static void greet(const struct target *target)
{
	struct utsname name;

	uname(&name);
	put("%s %s\n", name.release, target->name);
	answer('H');
}

int main(void)
{
	static char text[LONGEST_FRAME];
	const struct target *target;
	sigset_t ends;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&ends);
	sigaddset(&ends, SIGCHLD);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	boot();
	target = strcmp(setting("GPUSVM_TARGET", ""), svmdev.name) ? &dmirror : &svmdev;
	output_init();
	process_init();
	port = open_port();
	greet(target);
	for (;;) {
		uint32_t length;
		char kind;

		receive(&length, sizeof(length));
		receive(&kind, 1);
		if (length >= LONGEST_FRAME)
			die("frame");
		receive(text, length);
		text[length] = 0;
		if (kind == 'Q')
			break;
		output_clear();
		do_sequence(target, text);
		answer('A');
	}
	power_off();
}
