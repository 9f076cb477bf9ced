/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/verbs.h"

#include <stddef.h>

const struct verb *const verbs[] = {
    &verb_peer_invite,
    &verb_peer_join,
    &verb_peer_list,
    &verb_peer_remove,
    &verb_image_add,
    &verb_image_list,
    &verb_image_rm,
    &verb_create,
    &verb_start,
    &verb_stop,
    &verb_kill,
    &verb_rm,
    &verb_list,
    &verb_info,
    &verb_config,
    &verb_move,
    &verb_refresh,
    &verb_status,
    &verb_cancel,
    &verb_recover,
    &verb_replica_list,
    &verb_replica_drop,
    &verb_events,
    &verb_disk_serve,
    &verb_disk_info,
    &verb_disk_verify,
    &verb_host,
    &verb_version,
    &verb_help,
    NULL,
};
