# One image for every service of docker-compose.yml; PostgreSQL has its own.
FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# No login, a fixed number: what it writes to the volume belongs to the same user after every build.
RUN groupadd --system --gid 10001 epic-omop \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin epic-omop \
    && install -d -o 10001 -g 10001 -m 0700 /data

WORKDIR /opt/epic-omop
COPY . .
# The sources come without git, which would know: `git describe --tags`.
ARG EPIC_OMOP_VERSION=0.2.0.dev0
ENV SETUPTOOLS_SCM_PRETEND_VERSION_FOR_EPIC_OMOP=${EPIC_OMOP_VERSION}
# Compiled once, here: a service whose file system is read-only would compile every module at every start.
RUN pip install --compile -c constraints.txt ".[postgres]"

# By number, so that a cluster can see that it is not root.
USER 10001:10001
WORKDIR /data
ENV EPIC_OMOP_HOME=/data
VOLUME /data
CMD ["epic-omop", "--help"]
