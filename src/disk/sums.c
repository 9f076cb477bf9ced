/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/sums.h"

#include "base/macro.h"
#include "disk/disk.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdlib.h>

struct sums {
    EVP_MAC_CTX *keyed; /* never used itself: each use has a copy */
};

int sums_new(const uint8_t key[SUMS_KEY], struct sums **ret, struct err *err)
{
    size_t size = SUMS_SIZE;
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
                                 OSSL_PARAM_construct_end()};
    struct sums *sums = calloc(1, sizeof *sums);
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "BLAKE2BMAC", NULL);
    if (sums && mac)
        sums->keyed = EVP_MAC_CTX_new(mac);
    EVP_MAC_free(mac);
    if (!sums || !sums->keyed || EVP_MAC_init(sums->keyed, key, SUMS_KEY, params) != 1) {
        sums_free(sums);
        return err_set(err, ENOTSUP, "OpenSSL does not make keyed BLAKE2b hashes here");
    }
    *ret = sums;
    return 0;
}

void sums_free(struct sums *sums)
{
    if (!sums)
        return;
    EVP_MAC_CTX_free(sums->keyed);
    free(sums);
}

int sums_make(const struct sums *sums, const void *data, size_t size, uint8_t (*ret)[SUMS_SIZE],
              struct err *err)
{
    for (size_t at = 0; at < size; at += DISK_BLOCK, ret++) {
        size_t length;
        EVP_MAC_CTX *context = EVP_MAC_CTX_dup(sums->keyed);
        bool made =
            context &&
            EVP_MAC_update(context, (const uint8_t *)data + at, MIN(size - at, (size_t)DISK_BLOCK)) == 1 &&
            EVP_MAC_final(context, *ret, &length, SUMS_SIZE) == 1 && length == SUMS_SIZE;
        EVP_MAC_CTX_free(context);
        if (!made)
            return err_set(err, ENOMEM, "OpenSSL could not make a hash");
    }
    return 0;
}
