// SPDX-License-Identifier: MIT
/* What the first process of a system has to do before the agent can work. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"

void die(const char *what)
{
	printf("AGENT FAILED: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	if (getpid() == 1)
		power_off();
	_exit(9);
}

void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* The kernel puts words of its command line that it does not know, NAME=VALUE, into the environment. */
const char *setting(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value ? value : otherwise;
}

static void mount_all(void)
{
	static const char *const mounts[][2] = {
		{ "proc", "/proc" }, { "sysfs", "/sys" }, { "devtmpfs", "/dev" }, { "tmpfs", "/tmp" },
		{ "tracefs", "/sys/kernel/tracing" }, { "ramfs", "/ram" },
		{ "debugfs", "/sys/kernel/debug" },
	};

	mkdir("/ram", 0700);
	for (size_t i = 0; i < sizeof(mounts) / sizeof(*mounts); i++)
		if (mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL) && errno != EBUSY)
			die(mounts[i][1]);
}

/* Of a file that may be missing, as not every kernel has every knob. */
static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | O_APPEND);
	ssize_t done;

	if (fd < 0)
		return -1;
	done = write(fd, value, strlen(value));
	close(fd);
	return done < 0 ? -1 : 0;
}

static void load_module(const char *name, const char *with)
{
	char path[128], parameters[256];
	int fd;

	snprintf(path, sizeof(path), "/modules/%s.ko", name);
	snprintf(parameters, sizeof(parameters), "%s", with);
	for (char *comma = parameters; (comma = strchr(comma, ',')); )
		*comma = ' ';
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_finit_module, fd, parameters, 0))
		die(path);
	close(fd);
	printf("LOADED %s %s\n", name, parameters);
}

/* Major number of a driver, by its name in /proc/devices; 0 if it is not there. */
static unsigned int major_of(const char *driver)
{
	FILE *devices = fopen("/proc/devices", "r");
	unsigned int number, found = 0;
	char line[128], name[64];

	while (devices && fgets(line, sizeof(line), devices))
		if (sscanf(line, "%u %63s", &number, name) == 2 && !strcmp(name, driver))
			found = number;
	if (devices)
		fclose(devices);
	return found;
}

static void make_nodes(void)
{
	unsigned int dmirrors = major_of("HMM_DMIRROR"), ports = major_of("virtio-portsdev");

	for (unsigned int i = 0; dmirrors && i < 4; i++) {
		char name[32];

		snprintf(name, sizeof(name), "/dev/hmm_dmirror%u", i);
		mknod(name, S_IFCHR | 0600, makedev(dmirrors, i));
	}
	if (ports)
		mknod("/dev/vport0p1", S_IFCHR | 0600, makedev(ports, 1));
}

/* One probe a line of the file /probes, if there is one. */
static void place_probes(void)
{
	FILE *probes = fopen("/probes", "r");
	char line[512];

	if (!probes)
		return;
	while (fgets(line, sizeof(line), probes))
		if (write_file("/sys/kernel/tracing/kprobe_events", line))
			die(line);
	fclose(probes);
	if (write_file("/sys/kernel/tracing/events/kprobes/enable", "1"))
		die("the probes");
}

/* Where the driver's array of devices is: what the probes report is an address in it. */
static void find_devices(void)
{
	FILE *symbols = fopen("/proc/kallsyms", "r");
	char line[256], name[128], address[32];

	while (symbols && fgets(line, sizeof(line), symbols))
		if (sscanf(line, "%31s %*c %127s", address, name) == 2 && !strcmp(name, "dmirror_devices"))
			setenv("GPUSVM_DEVICES_AT", address, 1);
	if (symbols)
		fclose(symbols);
}

static unsigned long read_number(const char *path)
{
	unsigned long number = 0;
	FILE *file = fopen(path, "r");

	if (file && fscanf(file, "%lu", &number) != 1)
		number = 0;
	if (file)
		fclose(file);
	return number;
}

/*
 * khugepaged scans at once when the first process has memory for it, and then sleeps as long as it was told.  The memory
 * here is this process's and stays, so that there is no other first one.
 */
static void quiet_khugepaged(void)
{
	size_t size = 4UL << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long scans;

	if (memory == MAP_FAILED)
		die("memory for khugepaged");
	write_file(THP "khugepaged/pages_to_scan", "100000");
	write_file(THP "khugepaged/scan_sleep_millisecs", "10");
	if (madvise(memory, size, MADV_HUGEPAGE))
		return;		/* a kernel without huge pages */
	memset(memory, 1, size);
	for (int i = 0; i < 500 && !read_number(THP "khugepaged/full_scans"); i++)
		usleep(10000);
	/* this wakes it, for one scan more */
	scans = read_number(THP "khugepaged/full_scans");
	write_file(THP "khugepaged/scan_sleep_millisecs", "100000000");
	for (int i = 0; i < 20 && read_number(THP "khugepaged/full_scans") == scans; i++)
		usleep(10000);
	write_file(THP "khugepaged/pages_to_scan", "1");
}

/* Nothing may happen to memory but what an operation does. */
static void keep_quiet(void)
{
	write_file("/proc/sys/kernel/randomize_va_space", "0");
	write_file("/proc/sys/kernel/kptr_restrict", "0");
	write_file("/proc/sys/kernel/numa_balancing", "0");
	write_file("/sys/kernel/mm/ksm/run", "0");
	write_file(THP "enabled", "madvise");
	write_file(THP "defrag", "madvise");
	write_file(THP "khugepaged/defrag", "0");
	quiet_khugepaged();
}

void boot(void)
{
	const char *module = setting("GPUSVM_MODULE", "");

	mount_all();
	keep_quiet();
	if (*module)
		load_module(module, setting("GPUSVM_PARAMETERS", ""));
	make_nodes();
	if (!strcmp(setting("GPUSVM_TARGET", ""), dmirror.name)) {
		find_devices();
		place_probes();
	}
}

/* ---- what the kernel warns of, which comes with its log */

static int kernel_log = -1;

void forget_warnings(void)
{
	/* a WARN_ON_ONCE is to come once a sequence, and not once a boot */
	write_file("/sys/kernel/debug/clear_warn_once", "1");
	if (kernel_log < 0)
		kernel_log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kernel_log < 0)
		die("/dev/kmsg");
	lseek(kernel_log, 0, SEEK_END);
}

void put_kernel_warnings(void)
{
	unsigned long count = 0, length = 0;
	char record[8192], text[4096] = "";
	ssize_t got;

	for (;;) {
		got = read(kernel_log, record, sizeof(record) - 1);
		if (got < 0 && errno == EPIPE)
			continue;
		if (got <= 0)
			break;
		record[got] = 0;
		for (const char *kind = "WARNING\0BUG\0Oops\0"; *kind; kind += strlen(kind) + 1) {
			char *at = strchr(record, ';');

			if (!at || strncmp(at + 1, kind, strlen(kind)))
				continue;
			count++;
			/* up to the offset in the function: what follows is of this build, and this process */
			for (text[length++] = ' '; *++at && *at != '\n' && *at != '+' && length < sizeof(text) - 200; )
				text[length++] = *at == ' ' ? '_' : *at;
		}
	}
	text[length] = 0;
	put_result(0, count, 0);
	put("%s", text);
}

int open_port(void)
{
	int port = open("/dev/vport0p1", O_RDWR | O_CLOEXEC);

	if (port < 0)
		die("/dev/vport0p1");
	return port;
}
