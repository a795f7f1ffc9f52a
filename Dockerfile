# syntax=docker/dockerfile:1
# One image for every role of Keyferry, for amd64 and arm64:
#   docker buildx build --platform linux/amd64,linux/arm64 -t registry.example.org/keyferry:0.1.0 --push .
# BASE is any Linux with Python 3.11 or later, its venv module and pip.
ARG BASE=docker.io/library/python:3.12-slim-bookworm

FROM ${BASE} AS build
# Where packages come from, if not from PyPI: ordinary settings of pip.
ARG PIP_INDEX_URL
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY broker broker
COPY operator operator
# The environment gets no pip of its own. Modules are compiled now: the root of the container is read-only later.
RUN python3 -m pip wheel --quiet --no-deps --wheel-dir /wheels . \
 && python3 -m venv --without-pip /opt/keyferry \
 && python3 -m pip --python /opt/keyferry/bin/python3 install --quiet --compile "$(echo /wheels/keyferry-*.whl)[operator]"

FROM ${BASE}
LABEL org.opencontainers.image.title="Keyferry" \
      org.opencontainers.image.description="A credential broker that keeps the tokens of workloads fresh" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing is installed in a running container, so what installs is left out. The official images of Python come without
# compiled modules, and nothing can write them in a root that is read-only: each start, and each probe, would compile anew.
RUN for packages in /usr/local/lib/python3*/site-packages /usr/lib/python3/dist-packages; do \
      rm -rf "$packages"/pip* "$packages"/setuptools* "$packages"/pkg_resources* "$packages"/wheel* \
             "$packages"/_distutils_hack "$packages"/distutils-precedence.pth; \
    done \
 && rm -rf /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip /usr/local/bin/pip* /usr/bin/pip* \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -x '/(test|tests|idlelib|lib2to3|site-packages)/' \
      "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && echo 'keyferry:x:65532:65532:Keyferry:/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'keyferry:x:65532:' >> /etc/group \
 && mkdir -p /var/lib/keyferry \
 && chown 65532:65532 /var/lib/keyferry \
 && chmod 0700 /var/lib/keyferry
COPY --from=build /opt/keyferry /opt/keyferry
ENV PATH=/opt/keyferry/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["/opt/keyferry/bin/keyferry"]
CMD ["--help"]
