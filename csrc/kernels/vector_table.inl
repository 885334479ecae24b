// The KernelSet of a vector ISA file, once its unnamed namespace holds the functions named here.
#define QDEQ_PER_ROW(T) {rows<T, kSubFloat, false>, rows<T, kSubInt32, false>, rows<T, kDouble, false>}
#define QDEQ_PER_ELEMENT(T) {rows<T, kSubFloat, true>, nullptr, rows<T, kDouble, true>}
#define QDEQ_KERNEL_SET(name)                                                          \
    {name,                                                                             \
     {QDEQ_PER_ROW(int8_t), QDEQ_PER_ROW(uint8_t), QDEQ_PER_ROW(int32_t)},             \
     {QDEQ_PER_ELEMENT(int8_t), QDEQ_PER_ELEMENT(uint8_t), QDEQ_PER_ELEMENT(int32_t)}, \
     unpack_4bit,                                                                      \
     unpack_2bit,                                                                      \
     to_bfloat16,                                                                      \
     to_float16,                                                                       \
     transpose_bytes,                                                                  \
     copy,                                                                             \
     fence}
