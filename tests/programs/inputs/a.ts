interface A { x:number; y?:string }
function f(a:A):string{ const z = a.y ?? "no"; return z+a.x }
console.log(f({x:1}))
const bad: number = "s";
