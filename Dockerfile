# fit-serve in two stages: a virtual environment is built in the first and copied into the second.
#
#   docker build --tag fit-serve .                                              CPU
#   docker build --tag fit-serve:gpu --build-arg CONSTRAINTS= --build-arg EXTRAS=gpu .
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 fit-serve
#
# BASE_IMAGE must have python3 (3.11 or newer) and, for the first stage, its venv module and pip.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# The constraints keep CUDA packages out; TORCH_INDEX is one more index to look for torch builds in.
ARG CONSTRAINTS=constraints-cpu.txt
ARG EXTRAS=""
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/fit-serve
# What the server needs, without the server: this layer lasts until pyproject.toml changes.
COPY pyproject.toml constraints-cpu.txt ./
RUN python3 -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*p["dependencies"], *p["optional-dependencies"].get(sys.argv[1], []), sep="\n")' "${EXTRAS}" \
      > requirements.txt \
 && /opt/fit-serve/bin/pip install ${CONSTRAINTS:+-c ${CONSTRAINTS}} \
      ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -r requirements.txt
COPY . .
RUN /opt/fit-serve/bin/pip install --no-deps .

FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="fit-serve" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fit
COPY --from=build /opt/fit-serve /opt/fit-serve
# Nothing is written outside /tmp, so the root file system can be read-only.
ENV PATH=/opt/fit-serve/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FIT_SERVE_HOST=0.0.0.0 \
    FIT_SERVE_PORT=8000
USER 10001
WORKDIR /tmp
EXPOSE 8000
# Liveness only: a server that loads or drains is not ready, but must not be restarted for it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['FIT_SERVE_PORT'] + '/livez', timeout=4)"]
ENTRYPOINT ["fit-serve"]
CMD ["serve"]
