# docker build -t jaxft .                                    CPU
# docker build -t jaxft:cuda --build-arg ACCELERATOR=cuda .  NVIDIA; run it with --gpus all
# docker build -t jaxft:tpu --build-arg ACCELERATOR=tpu .    a TPU VM; run it with --privileged --net host
#
# docker run --rm -v "$PWD:/work" jaxft train config.yaml
# It runs as user 1000, for whom a folder that is mounted at /work must be writable.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG ACCELERATOR=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/jaxft
ENV PATH=/opt/jaxft/bin:$PATH
COPY requirements requirements
RUN pip install --require-hashes --no-deps --requirement requirements/build.txt \
    && pip install --require-hashes --no-deps --no-build-isolation --requirement requirements/run.txt
COPY . .
# What runs on accelerators is pinned by jax, which the lines above pin.
# hadolint ignore=DL3013
RUN case "$ACCELERATOR" in \
        cpu) extras=gcs ;; \
        cuda | tpu) extras="$ACCELERATOR,gcs" ;; \
        *) echo "ACCELERATOR is cpu, cuda or tpu, not '$ACCELERATOR'." >&2; exit 1 ;; \
    esac \
    && pip install --no-build-isolation ".[$extras]" \
    && pip check

FROM python:${PYTHON}-slim
COPY --from=build /opt/jaxft /opt/jaxft
RUN useradd --uid 1000 --create-home jaxft && mkdir /work && chown jaxft /work
# The caches of jaxft and of the hub; mount a volume here to keep them.
ENV PATH=/opt/jaxft/bin:$PATH XDG_CACHE_HOME=/home/jaxft/.cache PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["jaxft"]
CMD ["--help"]
