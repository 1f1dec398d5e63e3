// SPDX-License-Identifier: MIT
/* Two operations at once: "race K LEFT | RIGHT", in two threads; both answers, with | between. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

static struct side {
	const struct target *target;
	const char *line;
	unsigned long delay;
	void *output;
} sides[2];

static int ready;

static void act(const struct side *side)
{
	/* who sleeps until the other comes wakes too late: each has a CPU of its own to wait on */
	__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < 2)
		;
	for (volatile unsigned long i = 0; i < side->delay; i++)
		;
	do_operation(side->target, side->line);
}

static void *other_thread(void *side)
{
	thread_init();
	act(side);
	((struct side *)side)->output = output_own();
	return NULL;
}

/* Who waits, and for how long, K says: an odd one delays the left side, an even one the right, by half of it. */
void do_race(const struct target *target, char *line)
{
	unsigned long jitter = strtoul(line, &line, 10);
	char *bar = strchr(line, '|');
	pthread_t thread;

	if (!bar) {
		put("-9 0 0 0 norace");
		return;
	}
	*bar = 0;
	sides[0] = (struct side){ target, line, jitter & 1 ? jitter / 2 : 0, NULL };
	sides[1] = (struct side){ target, bar + 1, jitter & 1 ? 0 : jitter / 2, NULL };
	ready = 0;
	if (pthread_create(&thread, NULL, other_thread, &sides[1]))
		die("thread");
	act(&sides[0]);
	pthread_join(thread, NULL);
	put(" | ");
	output_append(sides[1].output);
}
