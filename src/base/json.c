/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json.h"

#include "base/file.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>

#define MAX_DEPTH 64

/* jansson recurses per level; foreign text must not choose our stack's depth. */
static bool too_deep(const char *text, size_t size)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '[' || c == '{') && ++depth > MAX_DEPTH)
            return true;
        else if (!in_string && (c == ']' || c == '}'))
            depth--;
    }
    return false;
}

int json_parse(const char *text, size_t size, const char *what, json_t **ret, struct err *err)
{
    if (size > JSON_MAX_SIZE)
        return err_set(err, EFBIG, "%s is larger than %u bytes", what, JSON_MAX_SIZE);
    if (too_deep(text, size))
        return err_set(err, EINVAL, "%s is nested deeper than %d levels", what, MAX_DEPTH);
    json_error_t error;
    json_t *json = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!json)
        return err_set(err, EINVAL, "%s, line %d, column %d: %s", what, error.line, error.column, error.text);
    *ret = json;
    return 0;
}

int json_read_file(const char *path, json_t **ret, struct err *err)
{
    _cleanup_free_ void *text = NULL;
    size_t size;
    int r = file_load(path, JSON_MAX_SIZE, &text, &size, err);
    return r < 0 ? r : json_parse(text, size, path, ret, err);
}

int json_write_file(const char *path, const json_t *json, mode_t mode, struct err *err)
{
    _cleanup_free_ char *text = json_dumps(json, JSON_INDENT(2));
    if (!text)
        return err_set(err, ENOMEM, "cannot write %s: out of memory", path);
    size_t size = strlen(text);
    text[size++] = '\n'; /* takes the place of the NUL */
    return file_replace(path, text, size, mode, err);
}

int json_get_string(const json_t *object, const char *key, const char *what, const char **ret,
                    struct err *err)
{
    const char *value = json_string_value(json_object_get(object, key));
    if (!value)
        return err_set(err, EINVAL, "%s: \"%s\" must be a string", what, key);
    *ret = value;
    return 0;
}

int json_get_u64(const json_t *object, const char *key, const char *what, uint64_t *ret, struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return err_set(err, EINVAL, "%s: \"%s\" must be a whole number, 0 or more", what, key);
    *ret = (uint64_t)json_integer_value(value);
    return 0;
}

int json_get_id(const json_t *object, const char *key, const char *what, struct id *ret, struct err *err)
{
    if (id_parse(json_string_value(json_object_get(object, key)), ret) < 0)
        return err_set(err, EINVAL, "%s: \"%s\" must be 32 hex digits", what, key);
    return 0;
}

int json_get_object(const json_t *object, const char *key, const char *what, json_t **ret, struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (!json_is_object(value))
        return err_set(err, EINVAL, "%s: \"%s\" must be an object", what, key);
    *ret = value;
    return 0;
}

int json_get_array(const json_t *object, const char *key, const char *what, json_t **ret, struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (!json_is_array(value))
        return err_set(err, EINVAL, "%s: \"%s\" must be a list", what, key);
    *ret = value;
    return 0;
}

const char *json_str(const json_t *object, const char *key, const char *otherwise)
{
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : otherwise;
}

uint64_t json_u64(const json_t *object, const char *key, uint64_t otherwise)
{
    json_t *value = json_object_get(object, key);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? (uint64_t)json_integer_value(value)
                                                                    : otherwise;
}

bool json_bool(const json_t *object, const char *key, bool otherwise)
{
    json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_boolean_value(value) : otherwise;
}

double json_double(const json_t *object, const char *key, double otherwise)
{
    json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

int json_only_keys(const json_t *object, const char *what, const char *const *allowed, struct err *err)
{
    if (!json_is_object(object))
        return err_set(err, EINVAL, "%s must be a JSON object", what);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        const char *const *a = allowed;
        while (*a && strcmp(*a, key) != 0)
            a++;
        if (!*a)
            return err_set(err, EINVAL, "%s: unknown member \"%s\"", what, key);
    }
    return 0;
}
