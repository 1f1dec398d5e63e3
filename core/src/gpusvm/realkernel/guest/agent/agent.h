/* SPDX-License-Identifier: MIT */
/*
 * The agent: the only program of the guest.  It does operations that the host sends as lines of text, and answers each
 * with one line.
 */
#ifndef AGENT_H
#define AGENT_H

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096UL
#define SLOTS 16
#define SLOT_SIZE (16UL << 20)
#define BASE 0x100000000000UL	/* slot 0: the same in every process and boot */
#define MOST_PAGES 4096UL	/* of one operation */
#define ARGUMENTS 8

/* ---- output.c: the text of the answers, in memory that forked processes share */

void output_init(void);
void output_init_thread(void);
void *output_own(void);			/* the calling thread's */
void output_append(const void *output);	/* another's text */
void output_clear(void);
void output_cut(size_t length);	/* forgets what was put behind it */
const char *output_text(size_t *length);
void put(const char *format, ...) __attribute__((format(printf, 1, 2)));
void put_bytes(const char *text, size_t length);
/* ret, errno (the process's, if ret is negative), done, rounds */
void put_result(long ret, unsigned long done, unsigned long rounds);
/* the word that fills a page, or x and its CRC-32, page after page */
void put_pages(const unsigned char *pages, unsigned long n);

/* ---- process.c: what a process does by itself */

/*
 * A page is written in parts, and may be taken away in between: where two write and read at once, its first word is all
 * that is written and shown, so that nobody sees half of it.
 */
extern int first_words;
extern __thread unsigned char *scratch;	/* MOST_PAGES pages, outside the slots */

void process_init(void);
void thread_init(void);		/* of a second thread, for operations at the same time */
/* 0: there is no such operation */
int process_operation(const char *name, const unsigned long *argument);
void process_end(void);		/* ends the child that stays, if there is one */
unsigned char *page_at(unsigned long slot, unsigned long page);
void fill(unsigned char *pages, unsigned long n, uint32_t first);

/* ---- files.c: what a process maps that has a name or a descriptor */

int file_operation(const char *name, const unsigned long *argument);

/* ---- devices: dmirror.c and svmdev.c, of which one is in use */

struct target {
	const char *name;
	void (*open)(void);
	void (*close)(void);
	int (*operation)(const char *name, const unsigned long *argument);
	void (*forget_events)(void);
	void (*put_events)(void);
};

extern const struct target dmirror, svmdev;

/* ---- main.c and race.c */

void do_operation(const struct target *target, const char *line);
void do_race(const struct target *target, char *line);

/* ---- boot.c: what the first process of a system has to do */

void boot(void);
const char *setting(const char *name, const char *otherwise);
int open_port(void);
void forget_warnings(void);
void put_kernel_warnings(void);	/* how many since the last call or forget_warnings(), and of what */
void power_off(void);

void die(const char *what) __attribute__((noreturn));

#endif
