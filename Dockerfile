# syntax=docker/dockerfile:1
# The `minimind` command with PyTorch for a CPU or, with DEVICE=cuda, for NVIDIA GPUs.
#
#   docker build -t minimind .
#   docker build -t minimind:cuda --build-arg DEVICE=cuda .
#   docker run --rm -it -v "$PWD:/work" minimind train --max_steps 300 --output_dir runs/base
#   docker run --rm -it -v "$PWD:/work" --gpus all --ipc host minimind:cuda train ...
#
# The server, which is healthy once its model is loaded:
#
#   docker build -t minimind:server --target server .
#   docker run -v "$PWD/runs/chat:/model:ro" -p 8000:8000 -e MINIMIND_API_KEY=secret minimind:server
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS packages
ARG DEVICE=cpu
ARG EXTRAS="serve"
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy VIRTUAL_ENV=/opt/minimind
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt uv && uv venv "$VIRTUAL_ENV"
# PyTorch comes with CUDA unless the build for CPUs is asked for, which is a tenth as large.
RUN --mount=type=bind,source=constraints.txt,target=/build/constraints.txt \
    --mount=type=bind,source=pyproject.toml,target=/build/pyproject.toml \
    --mount=type=cache,target=/root/.cache/uv \
    cd /build; \
    case "$DEVICE" in \
      cpu) backend=(--torch-backend cpu) ;; \
      cuda) backend=() ;; \
      *) echo "DEVICE=$DEVICE: allowed are cpu and cuda" >&2; exit 2 ;; \
    esac; \
    read -ra extras <<< "$EXTRAS"; \
    uv pip install -c constraints.txt "${backend[@]}" -r pyproject.toml "${extras[@]/#/--extra=}"

FROM python:${PYTHON}-slim-bookworm AS minimind
# The C++ of decoding on a CPU is compiled for the machine it runs on, and so are Triton's launchers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages /opt/minimind /opt/minimind
RUN --mount=type=bind,target=/source,rw \
    --mount=type=bind,from=packages,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    VIRTUAL_ENV=/opt/minimind uv pip install --no-cache --no-deps --compile-bytecode \
      --build-constraints /source/constraints.txt /source
# Any --user may write to the home folder, which holds what is compiled and cached.
RUN useradd --create-home --uid 1000 minimind \
    && chmod 1777 /home/minimind \
    && install --directory --owner minimind /work
ENV PATH=/opt/minimind/bin:$PATH HOME=/home/minimind USER=minimind \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER minimind
WORKDIR /work
ENTRYPOINT ["minimind"]
CMD ["--help"]

FROM minimind AS server
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --start-interval=2s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
CMD ["serve", "--checkpoint", "minimind=/model", "--host", "0.0.0.0", "--port", "8000"]

# Without --target this stage is built: the command.
FROM minimind
