# The command line in a container. NOT BUILT YET: no image registry was within reach when this was
# written, so that the first build is a test of it (RELEASING.md).
#
#   docker build --target cpu  -t deeplab:cpu .
#   docker build --target cuda -t deeplab:cuda .
#   docker run --rm -v "$PWD:/work" deeplab:cpu segment photo.jpg --weights scenes
#   docker run --rm -p 127.0.0.1:8765:8765 deeplab:cpu app --host 0.0.0.0
#   docker run --rm --gpus all -v "$PWD:/work" deeplab:cuda segment photo.jpg --weights scenes
#
# The default index's PyTorch brings CUDA's libraries along, which are large, and which the target
# cpu has no use for. An index of PyTorch without them, as pytorch.org names one, leaves them out:
#
#   docker build --target cpu --build-arg TORCH_INDEX=ADDRESS -t deeplab:cpu .
#
# Compiled code and downloaded weights lie in /cache; a volume there keeps them: -v deeplab:/cache.

FROM python:3.11-slim AS base
# A compiler: Triton builds the launchers of its kernels with it, AOTInductor the exported programs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 \
    DEEPLAB_HOME=/cache/deeplab \
    XDG_CACHE_HOME=/cache \
    TORCH_HOME=/cache/torch \
    TRITON_CACHE_DIR=/cache/triton
WORKDIR /source
COPY constraints.txt ./

# PyTorch is installed before the sources are copied: they change often, it does not.
FROM base AS cpu
ARG TORCH_INDEX
RUN pip install --constraint constraints.txt torch ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY crf crf
COPY deeplab deeplab
RUN pip install --constraint constraints.txt ".[app,export,geo,video,plots]" && mkdir -m 777 /cache
WORKDIR /work
ENTRYPOINT ["deeplab"]
CMD ["--help"]

# CUDA's libraries come with PyTorch; the driver comes from the host, by NVIDIA's container toolkit.
FROM base AS cuda
RUN pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY crf crf
COPY deeplab deeplab
RUN pip install --constraint constraints.txt ".[app,export,geo,video,plots]" && mkdir -m 777 /cache
WORKDIR /work
ENTRYPOINT ["deeplab"]
CMD ["--help"]
