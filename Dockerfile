# blurrerank on the CPU:
#   docker build -t blurrerank .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" blurrerank run feats.h5
FROM python:3.13-slim

WORKDIR /src
COPY setup.cfg pyproject.toml MANIFEST.in constraints.txt README.md LICENSE ./
COPY blurrerank blurrerank
# torch's CPU build: the one for CUDA is several gigabytes larger.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c constraints.txt ".[report,plot]" \
    && rm -rf /src \
    && useradd --create-home --uid 1000 blurrerank \
    && mkdir /data && chown blurrerank /data

USER blurrerank
WORKDIR /data
VOLUME /data
ENTRYPOINT ["blurrerank"]
CMD ["--help"]
