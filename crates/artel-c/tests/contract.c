/* Uses the header as an engine would: prints how it lays out structures, or what calls answer. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "artel_moe.h"

#define OFFSET(type, field) printf(#type "." #field " %zu\n", offsetof(type, field))

static void print_layout(void) {
    printf("artel_moe_stack %zu\n", sizeof(artel_moe_stack));
    OFFSET(artel_moe_stack, numbers);
    OFFSET(artel_moe_stack, number_bytes);
    OFFSET(artel_moe_stack, scales);
    OFFSET(artel_moe_stack, scale_count);
    OFFSET(artel_moe_stack, scale_rows);
    OFFSET(artel_moe_stack, scale_columns);
    printf("artel_moe_settings %zu\n", sizeof(artel_moe_settings));
    OFFSET(artel_moe_settings, settings_bytes);
    OFFSET(artel_moe_settings, num_experts);
    OFFSET(artel_moe_settings, top_k);
    OFFSET(artel_moe_settings, hidden_size);
    OFFSET(artel_moe_settings, intermediate_size);
    OFFSET(artel_moe_settings, tokens_max);
    OFFSET(artel_moe_settings, format);
    OFFSET(artel_moe_settings, activation);
    OFFSET(artel_moe_settings, kernel_packs);
    OFFSET(artel_moe_settings, num_kernel_packs);
    OFFSET(artel_moe_settings, device);
    OFFSET(artel_moe_settings, packed);
    OFFSET(artel_moe_settings, w13);
    OFFSET(artel_moe_settings, w2);
    printf("ARTEL_MOE_OK %d\n", ARTEL_MOE_OK);
    printf("ARTEL_MOE_INVALID %d\n", ARTEL_MOE_INVALID);
    printf("ARTEL_MOE_UNAVAILABLE %d\n", ARTEL_MOE_UNAVAILABLE);
    printf("ARTEL_MOE_GPU %d\n", ARTEL_MOE_GPU);
    printf("ARTEL_MOE_BUG %d\n", ARTEL_MOE_BUG);
}

/* FP8 experts with addresses that nothing follows, and a kernel pack that is not there. */
static artel_moe_settings settings(void) {
    static const char *const packs[] = {"/nowhere/experts.pack"};
    const void *address = (const void *)(uintptr_t)0x10000;
    const artel_moe_stack w13 = {address, 4u * 512 * 384, address, 4 * 4 * 3, 128, 128};
    const artel_moe_stack w2 = {address, 4u * 384 * 256, address, 4 * 3 * 2, 128, 128};
    const artel_moe_settings all = {
        sizeof(artel_moe_settings), 4, 2, 384, 256, 64, "fp8-block128", "silu", packs, 1, 0, 0, w13, w2};
    return all;
}

static void create(const char *name, artel_moe_settings changed) {
    artel_moe_experts *experts = (artel_moe_experts *)(uintptr_t)16;
    int32_t status = artel_moe_create(&changed, &experts);
    printf("%s %d %s\n", name, status, artel_moe_last_error());
    if (experts != NULL) {
        printf("%s left a handle behind\n", name);
    }
}

static void print_errors(void) {
    artel_moe_settings changed = settings();
    printf("before 0 %s\n", artel_moe_last_error());
    create("valid", changed);
    changed.settings_bytes = 8;
    create("version", changed);
    changed = settings(), changed.num_experts = 0;
    create("no_experts", changed);
    changed = settings(), changed.hidden_size = UINT64_MAX;
    create("huge_hidden", changed);
    changed = settings(), changed.tokens_max = 0;
    create("no_tokens", changed);
    changed = settings(), changed.format = "fp7";
    create("format", changed);
    changed = settings(), changed.format = NULL;
    create("null_format", changed);
    changed = settings(), changed.activation = "swigluoai";
    create("interleaved", changed);
    changed = settings(), changed.activation = "\xff";
    create("not_utf8", changed);
    changed = settings(), changed.kernel_packs = NULL;
    create("null_packs", changed);
    changed = settings(), changed.w13.numbers = NULL;
    create("null_weights", changed);
    changed = settings(), changed.w2.numbers = (const char *)changed.w2.numbers + 8;
    create("odd_weights", changed);
    changed = settings(), changed.w2.number_bytes -= 1;
    create("short_weights", changed);
    changed = settings(), changed.w13.scale_count += 1;
    create("scale_count", changed);
    changed = settings(), changed.w13.scales = NULL;
    create("null_scales", changed);
    changed = settings(), changed.w13.scale_rows = 0;
    create("half_a_block", changed);
    changed = settings(), changed.format = "bf16";
    create("scales_of_bf16", changed);
    changed = settings(), changed.packed = 2;
    create("packed", changed);
    int32_t status = artel_moe_create(NULL, NULL);
    printf("null_out %d %s\n", status, artel_moe_last_error());
    status = artel_moe_forward(NULL, NULL, NULL, NULL, NULL, 1, NULL);
    printf("forward %d %s\n", status, artel_moe_last_error());
    printf("plan %d -\n", artel_moe_plan(NULL) != NULL);
    artel_moe_destroy(NULL);
    printf("done 0 %s\n", artel_moe_version());
}

int main(int count, char **arguments) {
    if (count == 2 && strcmp(arguments[1], "layout") == 0) {
        print_layout();
        return 0;
    }
    print_errors();
    return 0;
}
