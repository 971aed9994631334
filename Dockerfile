# The images of Tokka for CPUs, NVIDIA GPUs and AMD GPUs.
#
#   CPU    docker build -t tokka:cpu .
#   CUDA   docker build -t tokka:cuda --build-arg ENGINE=base --build-arg BASE=vllm/vllm-openai:v0.33.0 .
#   ROCm   docker build -t tokka:rocm --build-arg ENGINE=base --build-arg BASE=vllm/vllm-openai-rocm:v0.33.0 .
#
# ENGINE=cpu installs torch and vLLM for CPUs. ENGINE=base keeps both as they are in the base image.
# BuildKit (Docker's default builder) builds only the stages that the chosen image needs.

# Pinned by digest, because a tag can move to another image. `docker buildx imagetools inspect IMAGE` prints an image's digest.
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG ENGINE=cpu


FROM ${BASE} AS common
# The base image may set another user. The last stage of this file switches to uid 2000.
# hadolint ignore=DL3002
USER 0
# tini is process 1. It reaps the engine's children and passes SIGTERM to `tokka` alone, which then drains.
# Do not add -g. The engine would get the signal, too, and end before it has finished the in-flight requests.
# Packages have no pinned version, so that a build gets the distribution's security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
# OpenShift starts containers with any uid, but always with group 0, so group 0 can write to the same folders as uid 2000.
# vLLM's images already have a user with uid 2000.
RUN { getent passwd 2000 >/dev/null \
        || useradd --uid 2000 --gid 0 --no-create-home --home-dir /home/tokka --shell /usr/sbin/nologin tokka; } \
    && install --directory --owner=2000 --group=0 --mode=0775 /home/tokka /cache /state
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_BREAK_SYSTEM_PACKAGES=1
WORKDIR /build


FROM common AS engine-cpu
# vLLM and torch load libnuma and libgomp. torch.compile runs g++ while the server runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements requirements
# Only PyTorch's own index has the CPU build of torch.
RUN python3 -m pip install --no-deps --require-hashes --index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt \
    && python3 -m pip install --no-deps --require-hashes -r requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY server server
RUN python3 -m pip install --no-deps --no-build-isolation .


FROM common AS engine-base
COPY pyproject.toml README.md LICENSE ./
COPY server server
# Keep the versions of the engine's packages. The build fails here if Tokka's requirements conflict with them.
RUN python3 -c "import importlib.metadata as m, re; engine = re.compile(r'(vllm|torch|triton|flash|nvidia|amd|xformers|numpy|transformers|tokenizers|pytorch)'); \
print(*sorted({f'{d.name}=={d.version}' for d in m.distributions() if engine.match((d.name or '').lower())}), sep='\n')" >engine.txt \
    && grep --quiet '^vllm' engine.txt \
    && grep --quiet '^torch==' engine.txt \
    && python3 -m pip install --constraint engine.txt .


# ENGINE selects one of the two stages above.
# hadolint ignore=DL3006
FROM engine-${ENGINE}
RUN tokka --help >/dev/null && rm -rf /build
# /cache holds downloaded, converted and compiled files. /state holds the data that must outlive the container.
# torch needs a user name, and a uid without a passwd entry has none, so USER and LOGNAME give one.
ENV HOME=/home/tokka \
    USER=tokka \
    LOGNAME=tokka \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    FLASHINFER_WORKSPACE_BASE=/cache/flashinfer \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONUNBUFFERED=1 \
    TOKKA_STATE_DIR=/state \
    TOKKA_HOST=0.0.0.0 \
    TOKKA_PORT=8000
WORKDIR /home/tokka
VOLUME ["/cache", "/state"]
EXPOSE 8000
USER 2000:0
STOPSIGNAL SIGTERM
# Uses /livez instead of /readyz, because a server that loads a model for half an hour is healthy. Slim images have no curl.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['TOKKA_PORT'] + '/livez', timeout=4)"]
# vLLM's images start `vllm serve`. These lines replace both the entry point and its arguments.
ENTRYPOINT ["/usr/bin/tini", "--", "tokka"]
CMD ["serve"]
