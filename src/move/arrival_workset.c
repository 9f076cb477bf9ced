/* SPDX-License-Identifier: Apache-2.0
 *
 * The destination's part of what the guest touches first (memory/workset.h), kept here for its next move: what
 * its QEMU had to ask for, and behind that what the source tells, which came before anybody could ask.
 */
#include "base/log.h"
#include "base/macro.h"
#include "memory/workset.h"
#include "move/arrival.h"

#include <errno.h>

int arrival_workset(struct arrival *arrival, const uint8_t *payload, size_t size, struct err *err)
{
    if (!arrival->taken) /* nor is it known how much memory the guest has */
        return err_set(err, EPROTO, "a \"%s\" out of turn", frame_type_name(FRAME_WORKSET));
    pthread_mutex_lock(&arrival->lock);
    int r = arrival->workset ? 0 : workset_new(arrival->config.memory, &arrival->workset, err);
    if (r == 0)
        r = workset_decode(arrival->workset, payload, size, err);
    pthread_mutex_unlock(&arrival->lock);
    return r;
}

void arrival_keep_workset(struct arrival *arrival)
{
    struct err err = ERR_NONE;
    struct workset *workset;
    int r = workset_new(arrival->config.memory, &workset, &err);
    if (r == 0) {
        stream_touched(arrival->session.stream, workset);
        pthread_mutex_lock(&arrival->lock);
        if (arrival->workset)
            workset_add_all(workset, arrival->workset);
        pthread_mutex_unlock(&arrival->lock);
        if (workset_count(workset))
            r = workset_save(workset, arrival->host->env.vm_dir, &arrival->config.id, &err);
        workset_free(workset);
    }
    if (r < 0)
        log_warning("what the guest touches first is not kept for its next move: %s", err.text);
}
