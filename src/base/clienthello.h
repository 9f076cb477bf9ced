/* SPDX-License-Identifier: Apache-2.0
 *
 * clienthello: reads the server name out of a TLS ClientHello that was only peeked at, so that oraid can hand
 * a connection, still untouched, to the orai-vm it is for. Pure; the bytes are an attacker's. RFC
 * 8446, 4.1.2; RFC 6066, 3.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CLIENTHELLO_MAX 4096 /* what oraid peeks at most */
#define SERVER_NAME_SIZE 256

/* 0 and the name ("" when the hello carries none); -EAGAIN when `size` bytes are not the whole hello yet;
 * -EPROTO when they cannot become one, or it would be longer than CLIENTHELLO_MAX. */
int clienthello_server_name(const uint8_t *data, size_t size, char ret_name[SERVER_NAME_SIZE]);
