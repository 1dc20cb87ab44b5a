/**
 * How long requests take: a Prometheus histogram, by method, route and status. It is written with every request, so it
 * is kept in plain arrays, one for each route, and put into labels and lines by prom-client when somebody looks; its own
 * histogram makes and hashes an object of labels each time, which is a sixth of the time of a verify
 * (`docs/performance.md`).
 */

/** Upper bounds in seconds. */
const BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5]

/** Times of one method, route and status. */
interface Series {
  /** How many fell into each bucket, and beyond the last. */
  readonly counts: number[]
  sum: number
}

/** Records one request of a route. */
export type Recorder = (status: number, seconds: number) => void

export class RequestTimes {
  readonly name = 'mecha_keys_http_request_seconds'
  readonly help = 'Time from a request to its response, by route pattern'
  readonly type = 'histogram'
  readonly aggregator = 'sum'
  /** By method and route, then by status. */
  readonly #routes = new Map<string, { readonly labels: { method: string; route: string }; readonly byStatus: (Series | undefined)[] }>()

  /** The recorder of one route: what does not change from request to request is looked up here, once. */
  recorder(method: string, route: string): Recorder {
    const name = `${method} ${route}`
    const kept = this.#routes.get(name) ?? { labels: { method, route }, byStatus: [] }
    this.#routes.set(name, kept)
    return (status, seconds) => {
      const series = (kept.byStatus[status] ??= { counts: BUCKETS.map(() => 0).concat(0), sum: 0 })
      let bucket = 0
      while (bucket < BUCKETS.length && seconds > BUCKETS[bucket]!) bucket++
      series.counts[bucket]!++
      series.sum += seconds
    }
  }

  /** What prom-client asks of a metric. */
  async get() {
    const { name, help, type, aggregator } = this
    const values = [...this.#routes.values()].flatMap(({ labels, byStatus }) =>
      byStatus.flatMap((series, status) => (series ? this.#lines({ ...labels, status }, series) : [])),
    )
    return { name, help, type, aggregator, values }
  }

  /** Buckets count everything up to their bound. */
  #lines(labels: Record<string, string | number>, { counts, sum }: Series) {
    let total = 0
    const buckets = counts.map((count, i) => {
      total += count
      return { metricName: `${this.name}_bucket`, labels: { le: BUCKETS[i] ?? '+Inf', ...labels }, value: total }
    })
    return [...buckets, { metricName: `${this.name}_sum`, labels, value: sum }, { metricName: `${this.name}_count`, labels, value: total }]
  }
}
