# One image for all of Batchline; the command says which process it is. RUNTIME=worker-gpu makes the GPU worker's image,
# RUNTIME=worker-torch one with PyTorch.
FROM python:3.11-slim-bookworm AS dependencies
RUN pip install --no-cache-dir --root-user-action=ignore uv && python -m venv --without-pip /opt/batchline
ENV VIRTUAL_ENV=/opt/batchline UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
ARG RUNTIME=worker-cpu
COPY pyproject.toml constraints.txt ./
RUN uv pip install --quiet -c constraints.txt -r pyproject.toml --extra "$RUNTIME" --extra data

FROM dependencies AS source
COPY . .
RUN uv pip install --quiet --no-deps --prefix /opt/source .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin batchline \
 && install -d -o batchline -g batchline -m 0750 /models /blobs /data \
 && install -d -o batchline -g batchline -m 0755 /secrets
# Two layers, the large one first: a change of the source moves a few hundred kB.
COPY --from=dependencies /opt/batchline /opt/batchline
COPY --from=source /opt/source /opt/batchline
# ONNX Runtime reports to its maker over the network unless it is told not to.
ENV PATH=/opt/batchline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 BATCHLINE_MODELS=/models ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /models
ENTRYPOINT ["batchline"]
CMD ["--help"]
