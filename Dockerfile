# Turnflow in a container: built from source, run without root on a volume of its own.
#
#   docker build -t turnflow .
#   docker run --rm -v turnflow:/var/lib/turnflow turnflow keys create --tenant default --scopes admin,operator
#   docker run -d --stop-timeout 60 -p 7411:7411 -p 7412:7412 -v turnflow:/var/lib/turnflow turnflow
#
# Docker kills what has not ended 10 s after `docker stop`, and open streams have server.shutdown-grace-s, 20 s, to end: hence the timeout.
# The first start fetches the encoder's weights (91 MB) to the volume.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ libclang-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --release --workspace --locked --bin turnflow && \
    install -D --strip /target/release/turnflow /out/turnflow

FROM debian:bookworm-slim
# libstdc++ for RocksDB; certificates for the weights and for tiers behind a server; python3-pip is not here, so the weights
# come from the Hugging Face hub.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 && rm -rf /var/lib/apt/lists/* && \
    useradd --system --uid 7411 --home-dir /var/lib/turnflow --create-home turnflow
COPY --from=build /out/turnflow /usr/local/bin/turnflow
USER turnflow
ENV TURNFLOW_HOME=/var/lib/turnflow
VOLUME /var/lib/turnflow
EXPOSE 7411 7412
STOPSIGNAL SIGTERM
# Ready, and not only alive. Bash speaks TCP, and where server.tls is set OpenSSL, which comes with the certificates, speaks TLS; a server that
# wants certificates of its clients has to be asked in another way (--health-cmd).
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["bash", "-c", \
    "ask() { printf 'GET /ready HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'; }; ready() { read -r -t 2 line && [[ $line == *' 200 '* ]]; }; (exec 3<>/dev/tcp/127.0.0.1/7412 && ask >&3 && ready <&3) || ready < <(ask | openssl s_client -quiet -connect 127.0.0.1:7412 2>/dev/null)"]
ENTRYPOINT ["turnflow"]
# Other machines are let in once there is a key, and without one it says so and ends.
CMD ["serve", "--listen", "0.0.0.0:7411", "--http", "0.0.0.0:7412"]
