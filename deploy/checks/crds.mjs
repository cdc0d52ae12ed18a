// Validates a JSON array of custom resources on stdin against the schemas of their CRDs. Prints one line for each fault
// and exits with 1.
const MODELS = {
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
};

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
for (const resource of JSON.parse(Buffer.concat(chunks).toString())) {
  const name = `${resource.kind} ${resource.metadata.name}`;
  try {
    const { [resource.kind]: Model } = await import(MODELS[resource.apiVersion]);
    new Model(resource).validate();
  } catch (fault) {
    console.error(`${name}: ${fault.message}`);
    process.exitCode = 1;
  }
}
