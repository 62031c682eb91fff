# Latentry: published once, then served; there is no server code to write.
latentry export network:build --weights weights.safetensors --spec spec.json --name generator
latentry serve --port "$PORT" --metrics-port 0
