# syntax=docker/dockerfile:1
# The operator as an image: `docker build -t sipstuff-operator:0.1.0 .` (BuildKit, for the cache mounts).
# It places no calls by itself: that is what JOB_IMAGE is for.

FROM rust:1.95.0-slim-trixie AS build
# The image's own toolchain is the one of rust-toolchain.toml; without this, rustup would fetch components that only
# development needs.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src
COPY . .
# Dependencies stay compiled between builds in the cache mounts, so that a change here compiles one crate; `touch`, since
# a copied file may be older than what was built from another one.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    touch src/lib.rs src/main.rs \
    && cargo build --locked --release --bin sipstuff-operator \
    && install -D -m 0755 target/release/sipstuff-operator /out/usr/local/bin/sipstuff-operator
# A named volume takes its owner from here.
RUN install -d -m 0700 -o 65532 -g 65532 /out/var/lib/sipstuff-operator

FROM debian:trixie-slim
# Certificate authorities: always the newest there are.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /
LABEL org.opencontainers.image.title="sipstuff-operator" \
      org.opencontainers.image.description="Turns call requests from NATS JetStream or HTTP into Kubernetes Jobs, each placing one SIP phone call" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENV STATE_DIR=/var/lib/sipstuff-operator
# As number: Kubernetes cannot tell from a name that it is not root.
USER 65532:65532
# The API; probes and metrics.
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/sipstuff-operator"]
