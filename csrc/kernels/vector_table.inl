// The KernelSet of a vector ISA file, once its unnamed namespace holds the functions named here.
#define QDEQ_PER_ROW(T)                                                                                    \
    {QDEQ_ISA(dequantize_rows) < T, kSubFloat, false >, QDEQ_ISA(dequantize_rows) < T, kSubInt32, false >, \
     QDEQ_ISA(dequantize_rows) < T, kDouble,   false > }
#define QDEQ_PER_ELEMENT(T) \
    {QDEQ_ISA(dequantize_rows) < T, kSubFloat, true >, nullptr, QDEQ_ISA(dequantize_rows) < T, kDouble, true > }
#define QDEQ_OUT_TYPES(f) {f<kFloat32>, f<kBFloat16>, f<kFloat16>}
#define QDEQ_KERNEL_SET(name)                                                          \
    {name,                                                                             \
     {QDEQ_PER_ROW(int8_t), QDEQ_PER_ROW(uint8_t), QDEQ_PER_ROW(int32_t)},             \
     {QDEQ_PER_ELEMENT(int8_t), QDEQ_PER_ELEMENT(uint8_t), QDEQ_PER_ELEMENT(int32_t)}, \
     unpack_4bit,                                                                      \
     unpack_2bit,                                                                      \
     to_bfloat16,                                                                      \
     to_float16,                                                                       \
     transpose_bytes,                                                                  \
     transpose_words,                                                                  \
     QDEQ_OUT_TYPES(dequantize_codes),                                                 \
     QDEQ_OUT_TYPES(QDEQ_ISA(dequantize_e4m3)),                                        \
     QDEQ_OUT_TYPES(QDEQ_ISA(dequantize_nibbles)),                                     \
     copy,                                                                             \
     fence}
