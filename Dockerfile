# The CPU server: the wheel and its Triton, for the loopback of one container or pod.
#   docker build -t latentry .
#   docker run --rm --network host --shm-size 1g -v "$PWD/model_repository:/models" latentry
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(ls /tmp/wheels/*.whl)[serve,cpu]" \
 && rm -r /tmp/wheels /tmp/constraints.txt \
 && useradd --create-home latentry
USER latentry
ENTRYPOINT ["latentry"]
CMD ["serve", "--repository", "/models"]
