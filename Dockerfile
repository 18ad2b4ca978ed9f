# The gateway with the demo model, which runs on the CPU. Built in three stages: the program, the model, what runs. For a
# GPU add libvulkan1 and its driver to the last stage, and give the container its devices.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates cmake curl g++ git make pkg-config && rm -rf /var/lib/apt/lists/*
ENV PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /src
COPY rust-toolchain.toml scripts/lib.sh scripts/rust.sh /src/
RUN mkdir -p scripts && mv lib.sh rust.sh scripts/ && bash scripts/rust.sh
COPY . /src
RUN bash scripts/dist.sh

FROM debian:bookworm-slim AS model
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl python3 python3-pip python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY scripts /src/scripts
RUN bash scripts/model.sh

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl && rm -rf /var/lib/apt/lists/* && useradd --system --uid 10001 --create-home --home-dir /var/lib/spillway spillway
COPY --from=build /src/dist/spillway /usr/local/bin/spillway
COPY --from=build /src/dist/spillway.cdx.json /usr/share/doc/spillway/spillway.cdx.json
COPY --from=model /src/models /usr/share/spillway/models
COPY config/examples/compose.yaml /etc/spillway/spillway.yaml
ENV SPILLWAY_STATE_DIR=/var/lib/spillway SPILLWAY_CACHE_DIR=/var/lib/spillway/cache
USER spillway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:9901/readyz"]
ENTRYPOINT ["/usr/local/bin/spillway"]
CMD ["serve", "-c", "/etc/spillway/spillway.yaml"]
