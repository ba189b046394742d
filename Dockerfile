# Two images: `sidecar` (the library alone) and `bert-intent` (the reference service).
#   docker build --target sidecar .
#   docker build --target bert-intent .
# Builders that know no --target take --build-arg TARGET=sidecar instead.
# Both run without root, without capabilities and on a read-only root file system, as `restricted` wants it.
ARG TARGET=bert-intent

FROM python:3.11-slim AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY pyproject.toml constraints.txt ./


# --- the sidecar

FROM build AS build-sidecar
COPY README.md LICENSE ./
COPY gpuscale gpuscale
RUN pip install --prefix=/install -c constraints.txt '.[proxy,kubelet]'

FROM python:3.11-slim AS sidecar
COPY --from=build-sidecar /install /usr/local
# NVML is all that is wanted of the driver. Which GPUs are seen is the Pod's to say, never the image's.
ENV NVIDIA_DRIVER_CAPABILITIES=utility PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 9445
ENTRYPOINT ["gpuscale"]
CMD ["sidecar"]


# --- the reference service

FROM build AS build-bert-intent
# The packages change seldom and take gigabytes (CUDA): a layer of their own, made from pyproject.toml alone.
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['bert'], sep='\n')" > requirements.txt \
 && pip install --prefix=/install -c constraints.txt -r requirements.txt \
 # Compilers and headers, which serving does not use.
 && rm -rf /install/lib/python3.11/site-packages/triton* \
 && find /install \( -path '*/nvidia/*/include' -o -path '*/torch/include' -o -path '*/torch/test' \) -prune -exec rm -rf {} + \
 && find /install -name '*.a' -delete
COPY README.md LICENSE ./
COPY gpuscale gpuscale
RUN pip install --prefix=/library --no-deps .

FROM python:3.11-slim AS bert-intent
COPY --from=build-bert-intent /install /usr/local
COPY --from=build-bert-intent /library /usr/local
COPY examples/bert_intent/model /srv/model
COPY examples/bert_intent/bert_intent /srv/bert_intent
RUN python -m compileall -q /srv/bert_intent \
 && echo 'nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin' >> /etc/passwd
# Port 80 without root needs net.ipv4.ip_unprivileged_port_start=0, which Docker sets and a Pod may (a safe sysctl).
ENV BERT_HOST=0.0.0.0 BERT_PORT=80 HF_HUB_OFFLINE=1 HOME=/tmp PYTHONPATH=/srv \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
USER 65532:65532
EXPOSE 80 9445
ENTRYPOINT ["python", "-m", "bert_intent"]


FROM ${TARGET}
