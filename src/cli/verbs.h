/* SPDX-License-Identifier: Apache-2.0
 *
 * verbs: every verb of `orai`. Each is defined beside its code; verbs.c puts them into the order of help.
 */
#pragma once

#include "cli/args.h"

extern const struct verb verb_peer_invite, verb_peer_join, verb_peer_list, verb_peer_remove;
extern const struct verb verb_image_add, verb_image_list, verb_image_rm;
extern const struct verb verb_create, verb_start, verb_stop, verb_kill, verb_rm;
extern const struct verb verb_list, verb_info, verb_config, verb_events;
extern const struct verb verb_refresh, verb_move, verb_status, verb_cancel, verb_recover;
extern const struct verb verb_replica_list, verb_replica_drop;
extern const struct verb verb_disk_serve, verb_disk_info, verb_disk_verify;
extern const struct verb verb_host, verb_version, verb_help;
