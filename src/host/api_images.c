/* SPDX-License-Identifier: Apache-2.0 */
#include "base/macro.h"
#include "host/api.h"
#include "host/caller.h"
#include "host/image.h"

int api_images(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    (void)request;
    json_t *images = NULL;
    int r = registry_list(host->registry, REGISTRY_IMAGES, &images, err);
    return r < 0 ? r : answer_json(ret, 200, json_pack("{s:o}", "images", images));
}

int api_image(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    json_t *image = NULL;
    int r = image_find(host, request->args[0], &image, err);
    return r < 0 ? r : answer_json(ret, 200, image);
}

int api_image_add(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    static const char *const members[] = {"name", "path", NULL};
    const char *name = NULL, *path = "";
    struct id operation;
    int fd = -1;
    int r = request_body(request, false, members, err);
    if (r == 0)
        r = body_name(request->body, "name", &name, err);
    if (r == 0)
        r = body_string(request->body, "path", &path, err);
    if (r == 0)
        r = caller_open(&request->credentials, path, "the image", &fd, err);
    if (r == 0)
        r = image_add(host, name, fd, &operation, err);
    return r < 0 ? r : answer_operation(host, &operation, ret, err);
}

int api_image_remove(struct host *host, struct request *request, struct answer *ret, struct err *err)
{
    int r = image_remove(host, request->args[0], request_flag(request, "force"), err);
    return r < 0 ? r : answer_ok(ret);
}
