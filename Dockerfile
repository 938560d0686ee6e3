# The image of a relay or an agent: the program, the libraries it is linked to and the roots that TLS trusts, no shell.
#
#   docker build --tag portal .                               with the server of files and folders, and TLS at the agent
#   docker build --tag portal --build-arg FEATURES=mio .      the small build; mio,tls for an agent that ends TLS
#
# Nothing here needs BuildKit: buildah builds it too, the small build on a machine of 462 MiB without swap
# (portal-cli/package/image/run tries that; README.md beside it has the measurements behind the profile).

# The version of rust-toolchain.toml, which stays outside: the base image has what a build needs, and no more.
ARG RUST=1.95.0
FROM docker.io/library/rust:${RUST}-slim-bookworm AS build
# One crate at a time: what the largest takes is what the build takes.
ENV CARGO_BUILD_JOBS=1 CARGO_TERM_COLOR=never
ARG FEATURES=tls,tokio
WORKDIR /src

# The dependencies, in a layer of their own: it is kept until a manifest or the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY benches/Cargo.toml benches/
COPY core/Cargo.toml core/
COPY core/adapter/Cargo.toml core/adapter/
COPY core/conformance/Cargo.toml core/conformance/
COPY core/sim/Cargo.toml core/sim/
COPY portal-cli/Cargo.toml portal-cli/
COPY runtime-mio/Cargo.toml runtime-mio/
COPY runtime-tokio/Cargo.toml runtime-tokio/
COPY portal-cli/package/image/build portal-cli/package/image/
RUN portal-cli/package/image/build dependencies "$FEATURES"

COPY . .
RUN portal-cli/package/image/build program "$FEATURES"
RUN portal-cli/package/image/build root /root-of-image "$FEATURES"

FROM scratch
COPY --from=build /root-of-image /
# Before VOLUME, which would undo it. Everything else belongs to root and is never written.
COPY --from=build --chown=65532:65532 /var/empty-volume /var/lib/portal
# An agent's key and socket are in the volume, too.
ENV PATH=/usr/bin XDG_STATE_HOME=/var/lib
USER 65532:65532
WORKDIR /var/lib/portal
VOLUME /var/lib/portal
# Agents; visitors where a relay runs with --http 8080 --https 8443, which need no capability.
EXPOSE 51820/udp 8080/tcp 8443/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 CMD ["/usr/bin/portal", "health"]
ENTRYPOINT ["/usr/bin/portal"]
CMD ["--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Portal" \
      org.opencontainers.image.description="Puts a service that runs behind a NAT on a public address, through a relay of your own" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="scratch"
