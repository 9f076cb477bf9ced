/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's part of what the guest touches first (memory/workset.h). What is known of it comes from the
 * guest's last arrival here; while memory goes over before the switch the pages that go again are added. Where
 * memory follows the guest those go first (stream_prefer), and at the end the destination is told, for the
 * guest's next move. A move never fails for it.
 */
#include "base/log.h"
#include "base/macro.h"
#include "memory/workset.h"
#include "move/departure.h"

#include <errno.h>

const struct workset *departure_workset(struct departure *departure)
{
    struct err err = ERR_NONE;
    const struct vm_config *config = machine_config(departure->machine);
    if (departure->workset)
        return departure->workset;
    int r = workset_new(config->memory, &departure->workset, &err);
    if (r == 0)
        r = workset_load(departure->workset, departure->host->env.vm_dir, &config->id, &err);
    if (r < 0 && r != -ENOENT)
        log_info("what %s touches first is not known: %s", config->name, err.text);
    return departure->workset;
}

void departure_renew_workset(struct departure *departure)
{
    struct workset *renewed;
    if (!departure->workset || workset_new(machine_config(departure->machine)->memory, &renewed, NULL) < 0)
        return;
    stream_touched(departure->session.stream, renewed);
    workset_add_all(renewed, departure->workset);
    workset_free(departure->workset);
    departure->workset = renewed;
}

void departure_tell_workset(struct departure *departure)
{
    struct link *link = departure->session.control;
    departure_renew_workset(departure);
    if (!link || !departure->tells_workset || !departure->workset || !workset_count(departure->workset))
        return;
    _cleanup_free_ uint8_t *message = malloc(WORKSET_MESSAGE);
    if (message)
        link_send(link, FRAME_WORKSET, NULL, 0, message, workset_encode(departure->workset, message), NULL);
}
