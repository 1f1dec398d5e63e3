// SPDX-License-Identifier: MIT
/*
 * Files that can be mapped: 0 is an object of tmpfs, 1 a file of ramfs.  A process finds both empty, and they are gone
 * when it ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent.h"

#define FILES 2

static int opened[FILES] = { -1, -1 };

static int file(unsigned long number)
{
	int *fd = &opened[number % FILES];

	if (*fd >= 0)
		return *fd;
	if (number % FILES) {
		*fd = open("/ram/file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		unlink("/ram/file");
	} else {
		*fd = memfd_create("file", MFD_CLOEXEC);
	}
	if (*fd < 0)
		die("file");
	return *fd;
}

/* Page by page, as far as there are whole ones. */
static unsigned long transfer(ssize_t (*move)(int, void *, size_t, off_t), const unsigned long *a)
{
	unsigned long done = 0;

	while (done < a[2] && move(file(a[0]), scratch + done * PAGE, PAGE, (a[1] + done) * PAGE) == (ssize_t)PAGE)
		done++;
	return done;
}

static ssize_t write_at(int fd, void *from, size_t n, off_t at)
{
	return pwrite(fd, from, n, at);
}

int file_operation(const char *name, const unsigned long *a)
{
	if (!strcmp(name, "mapf")) {
		int flags = MAP_FIXED | MAP_NORESERVE | (a[4] ? MAP_SHARED : MAP_PRIVATE);
		void *found = mmap(page_at(a[0], a[1]), a[2] * PAGE, a[3], flags, file(a[5]), a[6] * PAGE);

		put_result(found == MAP_FAILED ? -1 : 0, 0, 0);
	} else if (!strcmp(name, "ft")) {
		put_result(ftruncate(file(a[0]), a[1] * PAGE), 0, 0);
	} else if (!strcmp(name, "pr")) {
		unsigned long done = transfer(pread, a);

		put_result(0, done, 0);
		put(" ");
		put_pages(scratch, done);
	} else if (!strcmp(name, "pw")) {
		fill(scratch, a[2], a[3]);
		put_result(0, transfer(write_at, a), 0);
	} else {
		return 0;
	}
	return 1;
}
