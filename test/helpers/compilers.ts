/** Compilers of schemas for apps of which a process starts many: what is compiled is what the service compiles, once for all of them. */

import { createCompilers, type Compilers } from '../../src/http/validation.js'

const compilers = createCompilers()
const validators = new Map<string, ReturnType<ReturnType<Compilers['buildValidator']>>>()
const serializers = new Map<string, ReturnType<ReturnType<Compilers['buildSerializer']>>>()

export const sharedCompilers: Compilers = {
  buildValidator() {
    const compile = compilers.buildValidator()
    return (route) => once(validators, `${route.httpPart === 'body'} ${JSON.stringify(route.schema)}`, () => compile(route))
  },
  buildSerializer(known) {
    const compile = compilers.buildSerializer(known)
    const names = Object.keys(known).join()
    return (route) => once(serializers, `${names} ${JSON.stringify(route.schema)}`, () => compile(route))
  },
}

function once<T>(known: Map<string, T>, key: string, make: () => T): T {
  const made = known.get(key) ?? make()
  known.set(key, made)
  return made
}
