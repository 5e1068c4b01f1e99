# Everything that a run needs, for privileged containers:
#   docker build -t migration-bench .
#   docker run --rm --privileged -v "$PWD/runs:/runs" migration-bench run smallest -o /runs/first
# Inside there is no systemd, no module can be loaded, and /proc/sys may be read-only: the bench needs none of them.
FROM debian:12-slim

ENV DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends make ca-certificates \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/migration-bench
COPY . .
RUN make setup \
 && rm -rf /var/lib/apt/lists/* /root/.cache

ENV PATH=/opt/migration-bench/.venv/bin:$PATH
WORKDIR /
ENTRYPOINT ["bench"]
CMD ["--help"]
