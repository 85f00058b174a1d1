/* As much of cuRAND as candle links to make a device: generators that generate nothing. */
enum { SUCCESS = 0 };

int curandCreateGenerator(void **out, int kind) {
    static char generator;
    (void)kind;
    *out = &generator;
    return SUCCESS;
}

int curandDestroyGenerator(void *generator) {
    (void)generator;
    return SUCCESS;
}

int curandSetStream(void *generator, void *stream) {
    (void)generator, (void)stream;
    return SUCCESS;
}

int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    (void)generator, (void)seed;
    return SUCCESS;
}
