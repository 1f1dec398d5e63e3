// SPDX-License-Identifier: MIT
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "agent.h"

#define ROOM (8UL << 20)
#define LONGEST 65536UL		/* text of one call */

struct output {
	size_t length;
	char text[ROOM];
};

static __thread struct output *out;

static uint32_t crc_of_byte[256];

static void get_output(void)
{
	out = mmap(NULL, sizeof(*out), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (out == MAP_FAILED)
		die("memory for answers");
}

void output_init(void)
{
	get_output();
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;

		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? 0xedb88320u ^ (crc >> 1) : crc >> 1;
		crc_of_byte[byte] = crc;
	}
}

void *output_own(void)
{
	return out;
}

void output_append(const void *output)
{
	const struct output *other = output;

	put_bytes(other->text, other->length);
}

void output_init_thread(void)
{
	get_output();
}

void output_clear(void)
{
	out->length = 0;
}

void output_cut(size_t length)
{
	out->length = length;
}

const char *output_text(size_t *length)
{
	*length = out->length;
	return out->text;
}

void put(const char *format, ...)
{
	va_list arguments;

	if (out->length + LONGEST > ROOM)
		return;
	va_start(arguments, format);
	out->length += vsnprintf(out->text + out->length, LONGEST, format, arguments);
	va_end(arguments);
}

void put_bytes(const char *text, size_t length)
{
	if (out->length + length + LONGEST > ROOM)
		return;
	memcpy(out->text + out->length, text, length);
	out->length += length;
}

void put_result(long ret, unsigned long done, unsigned long rounds)
{
	put("%ld %d %lu %lu", ret, ret < 0 ? errno : 0, done, rounds);
}

static uint32_t crc32(const unsigned char *page)
{
	uint32_t crc = ~0u;

	for (unsigned long i = 0; i < PAGE; i++)
		crc = crc_of_byte[(crc ^ page[i]) & 255] ^ (crc >> 8);
	return ~crc;
}

void put_pages(const unsigned char *pages, unsigned long n)
{
	for (unsigned long i = 0; i < n; i++, pages += PAGE) {
		const char *comma = i ? "," : "";
		uint32_t word;

		memcpy(&word, pages, sizeof(word));
		/* a page equals itself moved by a word: it is that word, repeated */
		if (first_words || !memcmp(pages, pages + sizeof(word), PAGE - sizeof(word)))
			put("%s%x", comma, word);
		else
			put("%sx%08x", comma, crc32(pages));
	}
}
