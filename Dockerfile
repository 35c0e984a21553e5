# The image: the proxy alone, without the simulator, without a shell, not as root.
#
#   docker build -t seawall .
#   docker run -p 127.0.0.1:8460:8460 -v seawall-data:/data \
#     -e SEAWALL__SERVER__PUBLIC_URL=https://flexport-proxy.example.internal seawall
#
# SEAWALL__SERVER__PUBLIC_URL is required: the data listener is not on loopback here, and links in Flexport's answers
# are rewritten to this base. Without it Seawall exits with 78 and says so. Where credentials are injected
# (`credentials.mode = "inject"`) it also demands callers: an open relay does not start.

# === Build ===

FROM rust:1.95-bookworm AS build
WORKDIR /build

# The dependencies alone, with empty sources: a layer that changes only with Cargo.toml and Cargo.lock.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches/peers \
 && echo 'fn main() {}' | tee src/main.rs > benches/peers/main.rs \
 && touch src/lib.rs \
 && cargo build --locked --release --no-default-features --bin seawall

# Then Seawall. Copied files keep their old times; cargo must see that they are newer than the empty ones.
COPY . .
RUN find src -name '*.rs' -exec touch {} + \
 && cargo build --locked --release --no-default-features --bin seawall \
 && install -D target/release/seawall /out/seawall \
 && mkdir -p /out/data

# === Run ===

# Same Debian as the build, so the same glibc. It has the CA certificates and /tmp, and nothing to log in to.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/seawall /usr/local/bin/seawall
# A new named volume takes its owner from here. A bind mount must be writable for 65532.
COPY --from=build --chown=65532:65532 /out/data /data
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/seawall/

# The admin listener stays on 127.0.0.1:8461, inside the container: probe by `exec`, or set SEAWALL__ADMIN__LISTEN
# and a token (SEAWALL__ADMIN__TOKEN_FILE), without which it does not start there.
ENV SEAWALL__SERVER__LISTEN=0.0.0.0:8460 \
    SEAWALL__DATA_DIR=/data

# Queued writes live here: a 202 is a promise that must outlive the container.
VOLUME ["/data"]
EXPOSE 8460
USER 65532:65532

HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
  CMD ["/usr/local/bin/seawall", "health", "ready"]

# SIGTERM drains for `server.drain.grace` (25 s): give it more, `docker stop --time 35`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/seawall"]
CMD ["serve"]
