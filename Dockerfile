# One image for every function: FUNCTION_TARGET picks which. docs/decisions/2026-11-25-one-slim-image.md says why it is made like this.
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS packages
WORKDIR /build
COPY requirements-cloud.txt requirements.txt ./
RUN python -m venv /cloud && /cloud/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-cloud.txt
RUN python -m venv /all && /all/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.txt
# Bytecode now, so that no instance compiles it as it starts.
RUN python -m compileall -q /cloud /all

FROM python:${PYTHON} AS project
WORKDIR /app
# python's image comes without the bytecode of its own library, and no user but root could keep it: half of a cold start.
RUN python -m compileall -q -x '/(idlelib|lib2to3|turtledemo|site-packages)/' "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY main.py ./
COPY functions functions
COPY shared shared
COPY workflows workflows
COPY supabase supabase
RUN python -m compileall -q .

# What jobs run, the nightly backup and the smoke test: the command line, and PostgreSQL's own dump.
FROM project AS tools
COPY infra/environments infra/environments
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
    && install -d /usr/share/postgresql-common/pgdg \
    && curl -fsSo /usr/share/postgresql-common/pgdg/apt.postgresql.org.asc https://www.postgresql.org/media/keys/ACCC4CF8.asc \
    && echo "deb [signed-by=/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc] https://apt.postgresql.org/pub/repos/apt bookworm-pgdg main" > /etc/apt/sources.list.d/pgdg.list \
    && apt-get update && apt-get install -y --no-install-recommends postgresql-client-18 \
    && apt-get purge -y curl gnupg && apt-get autoremove -y && rm -rf /var/lib/apt/lists/*
COPY --from=packages /all /all
ENV PATH=/all/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
ENTRYPOINT ["python", "-m", "shared.cli"]

FROM project AS functions
COPY --from=packages /cloud /cloud
ENV PATH=/cloud/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
# exec: the signal that ends an instance has to reach the server. Its port and FUNCTION_TARGET are in the environment.
CMD ["functions-framework"]
