// js-libp2p 3 wants Promise.withResolvers, which Node.js has from 22 on. Loaded first, by `node --import`.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new this((yes, no) => {
      resolve = yes
      reject = no
    })
    return { promise, resolve, reject }
  }
}
